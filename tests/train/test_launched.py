"""Two processes: ZeRO-2 and ZeRO-3 against one, text on one of them, resuming, kill -9."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from tests.train import small
from train.checkpoints import WHOLE, checkpoints
from train.recipe_files import load_recipe
from train.run import train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DUET = "compress={method: duet, budget: 8}"
FAST = "learning_rate={vision_encoder: 0.005, projector: 0.005, language_model: 0.005}"
VALIDATION = ["data.validation=0.5", "log.validate=2"]
SHARE = ["sequence_parallel=2", "checkpointing=true"]
PACKED = ["positions=v2pe:0.25", "data.packing=true", "data.window=90", "optimizer.micro_batch=2"]
LONG = [FAST, "precision=bf16", "optimizer.steps=40", "log.every=10", "log.save=40"]
LIMIT = 600  # seconds: a run that hangs must not hang the suite
STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True, scope="module")
def nothing_left() -> Iterator[None]:
    """No launcher, and none of its processes, outlives the tests."""
    yield
    for process in STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def overrides(folder: Path, output: str, *more: str) -> list[str]:
    """Four steps of 4 samples, one at a time: in most forwards one process has text alone."""
    return [
        f"model={folder / 'base'}",
        f"output={folder / output}",
        f"data.files=[{folder / 'data.json'}]",
        f"data.media={folder / 'media'}",
        "data.group=none",
        "optimizer.batch=4",
        "optimizer.micro_batch=1",
        "optimizer.steps=4",
        "optimizer.warmup=0",
        "log.every=1",
        "log.save=2",
        *more,
    ]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(*arguments: str) -> subprocess.Popen[bytes]:
    """DeepSpeed's launcher in a session of its own, so that all of it can be killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deepspeed.launcher.runner", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    STARTED.append(process)
    return process


def start(world: int, *arguments: str) -> subprocess.Popen[bytes]:
    """Processes of one machine that run tests/train/launched.py."""
    options = ["--num_accelerators", str(world), "--master_port", free_port()]
    return launch(*options, "--module", "tests.train.launched", *arguments)


def finish(process: subprocess.Popen[bytes]) -> str:
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"it hung:\n{output.decode()[-3000:]}")
    said = output.decode()
    assert process.returncode == 0, said[-3000:]
    return said


def run_jobs(folder: Path, world: int, jobs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Runs one after another in the same processes; their facts by name."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    finish(start(world, str(path)))
    return {job["name"]: json.loads((folder / f"{job['name']}.json").read_text()) for job in jobs}


def losses(facts: dict[str, Any]) -> list[float]:
    assert "error" not in facts, facts["error"]
    return [loss for _, loss in facts["loss"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("launched")
    small.recipe(made, text_every=2)
    return made


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, dict[str, Any]]:
    """The runs of two processes that most tests here look at."""

    def job(name: str, *more: str) -> dict[str, Any]:
        return {"name": name, "recipe": overrides(folder, name, *more)}

    return run_jobs(
        folder,
        2,
        [
            job("ddp", DUET),  # first: accelerate goes on with DeepSpeed once it was there
            job("zero2", "deepspeed=zero2"),
            job("zero3", "deepspeed=zero3"),
            job("zero2_duet", "deepspeed=zero2", DUET, *VALIDATION),
            job("zero3_duet", "deepspeed=zero3", DUET, "checkpointing=true"),
            job("zero2_long", "deepspeed=zero2", DUET, *LONG),
            job("zero3_long", "deepspeed=zero3", DUET, *LONG),
            job("zero3_lora", "deepspeed=zero3", DUET, "lora={rank: 4, alpha: 8, dropout: 0}"),
            job("share", "deepspeed=zero2", DUET, *SHARE, *VALIDATION),
            job("share_packed", "deepspeed=zero3", *PACKED, *SHARE),
            job("wrong", "optimizer.micro_batch=3"),
        ],
    )


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[str, Any]]:
    """The same in one process, without DeepSpeed."""
    reports = {}
    for name, more in {
        "dense": [],
        "duet": [DUET],
        "lora": [DUET, "lora={rank: 4, alpha: 8, dropout: 0}"],
        "packed": PACKED,
        "validated": [DUET, *VALIDATION],
    }.items():
        reports[name] = train(load_recipe("mini", overrides(folder, f"alone_{name}", *more)))
    return reports


Both = tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def both(runs: dict[str, dict[str, Any]], alone: dict[str, dict[str, Any]]) -> Both:
    return runs, alone


@pytest.mark.parametrize(
    ("launched", "single"),
    [
        ("zero2", "dense"),
        ("zero3", "dense"),
        ("zero2_duet", "validated"),
        ("zero3_duet", "duet"),
        ("ddp", "duet"),
        ("zero3_lora", "lora"),
        ("share", "validated"),
        ("share_packed", "packed"),
    ],
)
def test_losses_are_those_of_one_process(both: Both, launched: str, single: str) -> None:
    runs, alone = both
    assert runs[launched]["processes"] == 2
    assert losses(runs[launched]) == pytest.approx(losses(alone[single]), rel=2e-5)
    validation_losses = [
        [loss for _, loss in report["validation_loss"]]
        for report in (runs[launched], alone[single])
    ]
    assert validation_losses[0] == pytest.approx(validation_losses[1], rel=2e-5) and len(
        validation_losses[0]
    ) == 2 * (single == "validated")


@pytest.mark.parametrize(("launched", "single"), [("zero3", "dense"), ("zero3_lora", "lora")])
def test_zero3_saves_plain_weights(folder: Path, both: Both, launched: str, single: str) -> None:
    LlavaForConditionalGeneration.from_pretrained(folder / launched)
    got = load_file(folder / launched / "model.safetensors")
    wanted = load_file(folder / f"alone_{single}" / "model.safetensors")
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        # Adam makes a step of 0.005 of any gradient, rounding noise about zero included.
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["zero2_long", "zero3_long"])
def test_scenes_are_learned_in_bf16(runs: dict[str, dict[str, Any]], name: str) -> None:
    actual = losses(runs[name])
    assert actual[0] > 5 and actual[-1] < 1.5


def test_a_world_that_does_not_divide_is_refused(runs: dict[str, dict[str, Any]]) -> None:
    assert "such as 6" in runs["wrong"]["error"]


def test_another_number_of_processes_goes_on_from_a_universal_checkpoint(
    folder: Path, both: Both
) -> None:
    jobs = []
    for name in ("zero2", "zero3"):
        out = folder / name
        last, middle = out / "checkpoint-4", out / "checkpoint-2"
        (last / WHOLE).unlink()  # as if it had been killed there
        convert = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
        convert += ["--inject_missing_state", "--num_extract_workers", "1"]
        convert += ["--num_merge_workers", "1", "--input_folder", str(middle / "global_step2")]
        convert += ["--output_folder", str(middle / "global_step2_universal")]
        subprocess.run(convert, check=True, capture_output=True, timeout=LIMIT)
        settings = overrides(folder, name, f"deepspeed={name}")
        jobs.append({"name": f"{name}_again", "recipe": settings, "resume": True})
    again = run_jobs(folder, 1, jobs)
    for name in ("zero2", "zero3"):
        assert again[f"{name}_again"]["resumed_from"].endswith("checkpoint-2")
        assert losses(again[f"{name}_again"]) == pytest.approx(losses(both[1]["dense"]), rel=2e-5)


# ------------------------------------------------------------------ kill -9


def after_step(step: int) -> Callable[[Path, str], bool]:
    return lambda out, said: f"step {step}/" in said


def while_saving(step: int) -> Callable[[Path, str], bool]:
    def now(out: Path, said: str) -> bool:
        folder = out / f"checkpoint-{step}"
        return folder.is_dir() and not (folder / WHOLE).is_file()

    return now


def kill_when(
    process: subprocess.Popen[bytes], out: Path, now: Callable[[Path, str], bool]
) -> bool:
    """SIGKILL to the launcher and all its processes as soon as `now` holds.

    Returns False if the run ended before that was seen: the moment of a save is short.
    """
    stream, said = process.stdout, ""
    assert stream is not None
    os.set_blocking(stream.fileno(), False)
    began = time.monotonic()
    while not now(out, said):
        said += (stream.read() or b"").decode()
        if process.poll() == 0:
            return False
        assert process.poll() is None, said[-3000:]
        assert time.monotonic() - began < LIMIT, said[-3000:]
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


# After the checkpoint of step 3 there is time to be killed before that of step 6.
EIGHT = ["optimizer.steps=8", "log.save=3"]


@pytest.fixture(scope="module")
def straight(folder: Path) -> Iterator[list[float]]:
    facts = train(load_recipe("mini", overrides(folder, "straight", DUET, *EIGHT)))
    yield losses(facts)


@pytest.mark.parametrize(
    ("name", "now", "deepspeed"),
    [
        ("in_a_step", after_step(4), "zero3"),
        ("in_a_save", while_saving(6), "zero3"),
        ("in_a_step_2", after_step(4), "zero2"),
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    folder: Path,
    straight: list[float],
    name: str,
    now: Callable[[Path, str], bool],
    deepspeed: str,
) -> None:
    for attempt in "abc":
        out = f"{name}_{attempt}"
        line = ["mini", *overrides(folder, out, DUET, *EIGHT, f"deepspeed={deepspeed}")]
        if kill_when(start(2, *line), folder / out, now):
            break
    whole, cut_off = checkpoints(folder / out)
    assert [path.name for path in whole] == ["checkpoint-3"]
    assert bool(cut_off) == (name == "in_a_save")
    finish(start(2, *line, "--resume"))
    facts = json.loads((folder / out / "train_report.json").read_text())
    assert facts["resumed_from"].endswith("checkpoint-3")
    assert losses(facts) == pytest.approx(straight, rel=2e-5)


def test_two_launchers_make_one_run(folder: Path, alone: dict[str, dict[str, Any]]) -> None:
    """As on two machines: a host file, and the launcher started by hand on each."""
    hosts = folder / "hostfile"
    hosts.write_text("one slots=1\ntwo slots=1\n")
    meet = ["--master_addr", "127.0.0.1", "--master_port", free_port()]
    line = ["mini", *overrides(folder, "two", DUET, "deepspeed=zero2")]
    module = ["--module", "tests.train.launched", *line]
    launchers = [
        launch("--hostfile", str(hosts), "--no_ssh", "--node_rank", str(rank), *meet, *module)
        for rank in range(2)
    ]
    for launcher in launchers:
        finish(launcher)
    facts = json.loads((folder / "two" / "train_report.json").read_text())
    assert facts["processes"] == 2
    assert losses(facts) == pytest.approx(losses(alone["duet"]), rel=2e-5)
