"""Asks every question of a benchmark in every configuration of a sweep, once.

Batches are cut from the list of questions before anything else, so that a question always has the
same company: the results of a resumed run, or of one spread over processes, are those of one run in
one piece. No process waits for another; whoever finds all results there writes the report.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.answerers import Answerer, Question
from eval.arms import Arm, restore
from eval.records import RecordFile, read_records, write_once
from eval.samples import Benchmark, Clip, DataError, MediaError, Picture, Sample, slug

PACKAGES = ("foveate", "torch", "torchvision", "transformers", "numpy", "pillow", "decord")


@dataclass(frozen=True)
class Shard:
    """Which part of the batches a process takes: those whose number is `rank` modulo `world`."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_launcher(cls) -> Shard:
        """The part that torchrun, accelerate or the DeepSpeed launcher gave this process."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def open_run(
    root: Path,
    benchmark: Benchmark,
    samples: Sequence[Sample],
    answerer: Answerer,
    *,
    batch_size: int = 8,
    seed: int = 0,
) -> Path:
    """The result folder of a run: its name tells its configuration, `run.json` says all of it.

    The folder of the same configuration is gone on with. Raises DataError if what lies there was
    made with another configuration or other versions.
    """
    config = {
        **benchmark.describe(),
        "questions": len(samples),
        "data_sha256": _digest(samples),
        "model": answerer.describe(),
        "batch_size": batch_size,
        "seed": seed,
    }
    text = json.dumps(config, sort_keys=True)
    name = slug(f"{benchmark.name}-{Path(config['model']['name']).name}")
    folder = root / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    found = {"config": config, "versions": versions()}
    path = folder / "run.json"
    if not write_once(path, json.dumps(found, indent=1, sort_keys=True) + "\n"):
        there = json.loads(path.read_text(encoding="utf-8"))
        other = [
            f"{part}.{key}: {there.get(part, {}).get(key)!r} there, {value!r} now"
            for part, values in found.items()
            for key, value in json.loads(json.dumps(values)).items()
            if there.get(part, {}).get(key) != value
        ]
        if other:
            raise DataError(
                f"{folder} holds results of another configuration ({'; '.join(other)}). "
                "Choose another output folder"
            )
    return folder


def run(
    folder: Path,
    samples: Sequence[Sample],
    answerer: Answerer,
    arms: Sequence[Arm],
    *,
    batch_size: int = 8,
    seed: int = 0,
    shard: Shard = Shard(),
    progress: bool = True,
) -> None:
    """Ask what has not been answered yet, and append each batch's results as they come.

    folder: from `open_run`, with the same batch_size and seed. Media that cannot be read make a
    record with an error in it, which is counted and never scored.
    """
    names = [arm.folder for arm in arms]
    if len(set(names)) < len(names):
        raise ValueError(f"arms: each configuration once, got {[a.title for a in arms]}")
    batches = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]
    done = {name: set(read_records(folder / name)) for name in names}
    with ExitStack() as stack:
        files = {}
        for arm in arms:
            text = json.dumps({"title": arm.title, **arm.describe()}, indent=1) + "\n"
            write_once(folder / arm.folder / "arm.json", text)
            files[arm.folder] = RecordFile(folder / arm.folder, shard.rank)
            stack.callback(files[arm.folder].close)
        mine = batches[shard.rank :: shard.world]
        read: dict[Any, Any] = {}  # of the batch before: questions on one video follow one another
        bar = tqdm(mine, unit="batch", disable=not progress or shard.rank > 0)
        for batch in bar:
            waiting = [arm for arm in arms if any(s.key not in done[arm.folder] for s in batch)]
            if not waiting:
                continue
            asked, questions, failed = _load(batch, read)
            for arm in waiting:
                bar.set_postfix_str(arm.title)
                draw = zlib.crc32(f"{seed} {batch[0].key}".encode())
                replies = answerer.answer(questions, arm, draw) if questions else []
                rows = [
                    {
                        "key": sample.key,
                        "text": reply.text,
                        "prompt": reply.rendered or sample.prompt,
                        "figures": reply.figures,
                    }
                    for sample, reply in zip(asked, replies, strict=True)
                ]
                rows += [{"key": key, "error": error} for key, error in failed]
                files[arm.folder].append([r for r in rows if r["key"] not in done[arm.folder]])


def arms_in(folder: Path, samples: Sequence[Sample]) -> list[Arm]:
    """The configurations of a run whose results are all there: dense, then each by budget."""
    found = [
        restore(json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("*/arm.json")
    ]
    # Counts above fractions: which of them keeps more depends on the input.
    found.sort(key=lambda a: (a.method is not None, a.line, a.budget < 1, -a.budget))
    return [arm for arm in found if complete(folder, samples, arm)]


def complete(folder: Path, samples: Sequence[Sample], arm: Arm) -> bool:
    """Whether every question has its result in this configuration."""
    return {s.key for s in samples} <= set(read_records(folder / arm.folder))


def _load(
    batch: Sequence[Sample], read: dict[Any, Any]
) -> tuple[list[Sample], list[Question], list[tuple[str, str]]]:
    """Samples that can be asked, their questions, and the keys and errors of the others.

    read: media by their description; what this batch shows replaces what the last one did.
    """
    asked, questions, failed = [], [], []
    known: dict[Any, Any] = {}
    for sample in batch:
        try:
            for medium in sample.media:
                if medium not in known:
                    known[medium] = read[medium] if medium in read else medium.load()
        except MediaError as error:
            failed.append((sample.key, str(error)))
            continue
        media = tuple(known[medium] for medium in sample.media)
        prompt = sample.complete(sample.prompt, media) if sample.complete else sample.prompt
        asked.append(sample)
        questions.append(Question(prompt, media, sample.max_new_tokens))
    read.clear()
    read.update(known)
    return asked, questions, failed


def _digest(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for s in samples:
        digest.update(json.dumps([s.key, s.prompt, s.answer, dict(s.options)]).encode())
        for medium in s.media:
            if isinstance(medium, Picture) and isinstance(medium.source, bytes):
                digest.update(medium.source)
            elif isinstance(medium, Picture | Clip):
                path = medium.path if isinstance(medium, Clip) else medium.source
                digest.update(Path(str(path)).name.encode())
    return digest.hexdigest()


def versions() -> dict[str, Any]:
    """Versions of what an answer may depend on."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found
