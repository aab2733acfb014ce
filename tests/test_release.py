"""One version everywhere, and pins that agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from compress import TRANSFORMERS_END
from foveate import __version__

ROOT = Path(__file__).parent.parent


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "foveate.__version__"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == __version__  # type: ignore[index]


def test_pip_installs_the_transformers_that_is_tested() -> None:
    """An install without constraints takes the newest version that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = next(x for x in project["project"]["dependencies"] if x.startswith("transformers"))
    major, minor = TRANSFORMERS_END
    assert wanted.endswith(f",<{major}.{minor}")
    assert pins("constraints.txt")["transformers"].startswith(f"{major}.{minor - 1}.")


def test_environments_differ_in_pillow_alone() -> None:
    """.venv-tools reads what it lacks from .venv, so a pin of both must be the same."""
    ours, tools = pins("constraints.txt"), pins("constraints-tools.txt")
    assert [name for name in tools if name in ours and tools[name] != ours[name]] == ["pillow"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_workflows_and_templates_are_yaml(path: Path) -> None:
    read = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert read["name"]
    steps = [step for job in read.get("jobs", {}).values() for step in job["steps"]]
    for command in [step["run"] for step in steps if "run" in step]:
        target = f"\n{command.removeprefix('make ')}: "
        assert (ROOT / command).is_file() or target in (ROOT / "Makefile").read_text(), command
