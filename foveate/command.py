"""`foveate ask | see | reduce | plan | train | eval | page | methods | families`.

Each command runs the same code as a `python -m` command, which its help names. A command imports
what it needs when it is called, so that `foveate --help` imports nothing but this file.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from foveate import __version__
from foveate.quiet import quiet
from foveate.rooms import prefer_own_rooms


@dataclass(frozen=True)
class Command:
    """One command. It calls `main(arguments, prog=...)` of a module.

    module: whose `main` is called.
    help: one line.
    before: arguments that are put before the user's.
    twin: the same command as a module.
    """

    module: str
    help: str
    before: tuple[str, ...] = ()
    twin: str = ""


COMMANDS = {
    "ask": Command(
        "vlm.__main__", "ask a model about pictures and videos", ("ask",), "python -m vlm ask"
    ),
    "see": Command(
        "compress.__main__", "draw what methods keep of a picture", (), "python -m compress"
    ),
    "reduce": Command(
        "compress.__main__",
        "reduce visual features that lie in a safetensors file",
        ("reduce",),
        "python -m compress reduce",
    ),
    "plan": Command(
        "positions.__main__", "print and draw the positions of tokens", (), "python -m positions"
    ),
    "train": Command("train.__main__", "fine-tune a model", (), "python -m train"),
    "eval": Command("eval.__main__", "run a benchmark, dense and reduced", (), "python -m eval"),
    "page": Command("foveate.page.__main__", "a page in the browser", (), "python -m foveate.page"),
    "methods": Command(
        "compress.methods.__main__", "list the methods", (), "python -m compress.methods"
    ),
    "families": Command(
        "vlm.families.__main__", "list the model families", (), "python -m vlm.families"
    ),
}


def usage() -> str:
    """The text of `foveate --help`."""
    lines = [
        "usage: foveate COMMAND ...",
        "",
        "Prune and merge the visual tokens of vision-language models.",
        "",
        *(f"  {name:10}{command.help:58}{command.twin}" for name, command in COMMANDS.items()),
        "",
        "foveate COMMAND --help lists the options of a command; foveate --version, the version;",
        "foveate completion bash, zsh or fish prints what completes them in a shell.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; 2 for a command that is not known."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    local_rank: list[str] = []
    if name.startswith(("--local_rank", "--local-rank")) and rest:
        # The DeepSpeed launcher puts it before the arguments of the user.
        local_rank, (name, *rest) = [name], rest
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name in ("-V", "--version"):
        print(f"foveate {__version__}")
        return 0
    if name == "completion":
        from foveate import completion

        prefer_own_rooms()
        quiet()
        return completion.main(rest, COMMANDS)
    if name not in COMMANDS:
        print(
            f"foveate: {name!r} is no command; expected one of {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    command = COMMANDS[name]
    prefer_own_rooms()
    quiet()
    module = importlib.import_module(command.module)
    prog = "foveate" if command.before else f"foveate {name}"
    try:
        return int(module.main([*command.before, *local_rank, *rest], prog=prog) or 0)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output went away, as `head` does
        sys.stderr.close()
        return 141
