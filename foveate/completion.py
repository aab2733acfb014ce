"""`foveate completion bash | zsh | fish`: a script that completes commands and their options."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

SHELLS = ("bash", "zsh", "fish")
INSTALL = (
    "foveate completion bash > ~/.local/share/bash-completion/completions/foveate",
    "foveate completion zsh > ~/.foveate.zsh, and `source ~/.foveate.zsh` in ~/.zshrc",
    "foveate completion fish > ~/.config/fish/completions/foveate.fish",
)


def main(arguments: Sequence[str], commands: Mapping[str, Any]) -> int:
    """Print the script of one shell; returns the exit status."""
    if list(arguments) in (["-h"], ["--help"]):
        print("usage: foveate completion bash | zsh | fish\n")
        print("\n".join(f"  {line}" for line in INSTALL))
        return 0
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        given = " ".join(arguments) or "nothing"
        print(f"shell is {given}: expected one of {', '.join(SHELLS)}", file=sys.stderr)
        return 2
    options = {name: options_of(command) for name, command in commands.items()}
    print(script(arguments[0], options))
    return 0


def options_of(command: Any) -> list[str]:
    """The long options that the help of a command names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(command.module).main([*command.before, "--help"])
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", said.getvalue())))


def script(shell: str, options: Mapping[str, Sequence[str]]) -> str:
    """The script itself. It asks nothing of Python when the user presses Tab."""
    if shell == "fish":
        known = " ".join(options)
        lines = [f"complete -c foveate -n __fish_use_subcommand -f -a '{known}'"]
        for name, given in options.items():
            lines += [
                f"complete -c foveate -n '__fish_seen_subcommand_from {name}' -l {option[2:]}"
                for option in given
            ]
        return "\n".join(lines)
    cases = [f'    {name}) words="{" ".join(given)}" ;;' for name, given in options.items()]
    lines = [
        "_foveate() {",
        '  local word="${COMP_WORDS[COMP_CWORD]}" words=""',
        '  case "${COMP_WORDS[1]}" in',
        *cases,
        "  esac",
        f'  [ "$COMP_CWORD" -gt 1 ] || words="{" ".join(options)}"',
        '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o default -F _foveate foveate",
    ]
    return "\n".join(
        [*(["autoload -U +X bashcompinit && bashcompinit"] * (shell == "zsh")), *lines]
    )
