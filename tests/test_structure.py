"""The structure of the source: rooms import one way, no circles, short functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("positions", "vlm", "compress", "train", "eval", "foveate", "scripts")
# A room may import those before it in its own line, and nothing else of the project.
MAY_IMPORT = {
    "positions": set(),
    "vlm": {"positions"},
    "compress": {"positions", "vlm"},
    "train": {"positions", "vlm", "compress"},
    "eval": {"positions", "vlm", "compress"},
    "foveate": {"positions", "vlm", "compress", "train", "eval"},
    "scripts": {"positions", "vlm", "compress", "train", "eval"},
}
LINES, ARGUMENTS = 60, 6


def modules() -> dict[str, Path]:
    """Every module of the source by its dotted name."""
    paths = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = list(path.relative_to(ROOT).with_suffix("").parts)
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


MODULES = modules()


def imported(path: Path, inside_functions: bool = True) -> Iterator[str]:
    """Modules of the project that a file imports, those for type hints alone included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if inside_functions else top_level(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from package import module` imports the module, if it is one.
            names = [
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in MODULES
                else node.module
                for alias in node.names
            ]
        else:
            continue
        yield from (name for name in names if name in MODULES)


def top_level(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when a module is imported, and those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from top_level(node)


def test_rooms_import_one_way() -> None:
    wrong = []
    for name, path in MODULES.items():
        room = name.split(".")[0]
        for other in imported(path):
            target = other.split(".")[0]
            command = name.endswith("__main__")  # what a person runs may use what comes after
            if target != room and target not in MAY_IMPORT[room] and not command:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of more than one module (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in sorted(arrows[node]):
            if after not in index:
                visit(after)
                low[node] = min(low[node], low[after])
            elif after in stack:
                low[node] = min(low[node], index[after])
        if low[node] == index[node]:
            at = stack.index(node)
            group, stack[at:] = stack[at:], []
            if len(group) > 1:
                cycles.append(sorted(group))

    for node in arrows:
        if node not in index:
            visit(node)
    return cycles


def test_no_circles_of_imports() -> None:
    """Packages are left out as targets of their own modules: `from compress import ops` in
    compress/ops/greedy.py names the package, and imports nothing that waits for it."""
    arrows = {
        name: {
            other
            for other in imported(path, inside_functions=False)
            if other != name and not name.startswith(f"{other}.")
        }
        for name, path in MODULES.items()
    }
    assert circles(arrows) == []
    assert circles({"a": {"b"}, "b": {"a"}, "c": set()}) == [["a", "b"]]


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function, its docstring left out."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


RUNTIME = [name for name in MODULES if name.startswith("compress.runtime")]


@pytest.mark.parametrize("name", RUNTIME)
def test_functions_of_the_runtime_are_short(name: str) -> None:
    long = [f.name for f in functions(MODULES[name]) if body_lines(f) > LINES]
    wide = [
        f.name
        for f in functions(MODULES[name])
        if len([a for a in (*f.args.args, *f.args.posonlyargs) if a.arg not in ("self", "cls")])
        > ARGUMENTS
    ]
    assert (long, wide) == ([], [])


def test_methods_are_short() -> None:
    folder = ROOT / "compress" / "methods"
    lengths = {path.name: len(path.read_text().splitlines()) for path in folder.glob("*.py")}
    lengths.pop("base.py")
    assert {name: n for name, n in lengths.items() if n > 150} == {}


def test_no_name_of_a_method_or_family_outside_its_file() -> None:
    """The runtime knows methods and families by their attributes."""
    from compress.methods import METHODS
    from vlm.families import ADAPTERS

    names = {cls.__name__ for cls in METHODS.values()} | {cls.__name__ for cls in ADAPTERS}
    strings = {adapter.name for adapter in ADAPTERS} | set(METHODS)
    wrong = []
    for name, path in MODULES.items():
        if not name.startswith(("compress.runtime", "compress.video", "compress.report")):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and node.id in names:
                wrong.append(f"{name}: {node.id}")
            if isinstance(node, ast.Compare):
                constants = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
                wrong += [f"{name}: {n.value!r}" for n in constants if n.value in strings]
    assert not wrong
