"""Asks every question of a benchmark once in every configuration of a sweep.

Questions are divided into batches before anything else, so a question is always in the same batch.
A resumed run, or a run on several processes, gives the results of an uninterrupted run in one
process. Processes do not wait for each other. The one that finds all results complete writes the
report.
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

from eval.answerers import Answerer, Question
from eval.arms import Arm, restore
from eval.records import RecordFile, read_records, write_once
from eval.samples import Benchmark, Clip, DataError, MediaError, Picture, Sample, slug
from vlm.progress import progress_bar

PACKAGES = ("foveate", "torch", "torchvision", "transformers", "numpy", "pillow", "decord")


@dataclass(frozen=True)
class Shard:
    """The batches that a process takes: those whose number is `rank` modulo `world`."""

    rank: int = 0
    world: int = 1

    @classmethod
    def from_launcher(cls) -> Shard:
        """The shard of this process under torchrun, accelerate or the DeepSpeed launcher."""
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
    """The result folder of a run, created if it does not exist.

    Its name contains a digest of the configuration, which `run.json` records in full. Raises
    DataError if the results in it were made with another configuration or other versions of
    packages.
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
    current = {"config": config, "versions": versions()}
    path = folder / "run.json"
    if not write_once(path, json.dumps(current, indent=1, sort_keys=True) + "\n"):
        recorded = json.loads(path.read_text(encoding="utf-8"))
        differences = [
            f"{part}.{key} was {recorded.get(part, {}).get(key)!r} and is {value!r}"
            for part, values in current.items()
            for key, value in json.loads(json.dumps(values)).items()
            if recorded.get(part, {}).get(key) != value
        ]
        if differences:
            raise DataError(
                f"{folder} holds results of another configuration ({'; '.join(differences)}): "
                "choose another output folder"
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
    """Ask the questions without results, and append the results of each batch.

    folder: from `open_run`, with the same batch_size and seed. A question whose media cannot be
    read, or that an answerer cannot answer, gets a record with an error, which is counted and not
    scored.
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
        own = batches[shard.rank :: shard.world]
        media: dict[Any, Any] = {}  # of the previous batch: questions on one video are neighbours
        bar = progress_bar(own, unit="batch", disable=not progress or shard.rank > 0)
        for batch in bar:
            waiting = [arm for arm in arms if any(s.key not in done[arm.folder] for s in batch)]
            if not waiting:
                continue
            asked, questions, failed = _load(batch, media)
            for arm in waiting:
                bar.set_postfix_str(arm.title)
                draw = zlib.crc32(f"{seed} {batch[0].key}".encode())
                replies = answerer.answer(questions, arm, draw) if questions else []
                rows = [
                    {"key": sample.key, "error": reply.error}
                    if reply.error
                    else {
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
    """The configurations of a run with complete results: dense first, then by budget."""
    arms = [
        restore(json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("*/arm.json")
    ]
    # Counts before fractions, as which of them keeps more depends on the input.
    arms.sort(key=lambda a: (a.method is not None, a.line, a.amount < 1, -a.amount))
    return [arm for arm in arms if complete(folder, samples, arm)]


def complete(folder: Path, samples: Sequence[Sample], arm: Arm) -> bool:
    """Whether every question has a result in this configuration."""
    return {s.key for s in samples} <= set(read_records(folder / arm.folder))


def _load(
    batch: Sequence[Sample], media: dict[Any, Any]
) -> tuple[list[Sample], list[Question], list[tuple[str, str]]]:
    """The samples whose media can be read, their questions, and keys and errors of the others.

    media: loaded media by description. Those of this batch replace those of the previous one.
    """
    asked, questions, failed = [], [], []
    current: dict[Any, Any] = {}
    for sample in batch:
        try:
            for medium in sample.media:
                if medium not in current:
                    current[medium] = media[medium] if medium in media else medium.load()
        except MediaError as error:
            failed.append((sample.key, str(error)))
            continue
        shown = tuple(current[medium] for medium in sample.media)
        prompt = sample.complete(sample.prompt, shown) if sample.complete else sample.prompt
        asked.append(sample)
        more = {"earlier": sample.earlier, "options": sample.spoken or tuple(sample.options)}
        questions.append(Question(prompt, shown, sample.max_new_tokens, **more))
    media.clear()
    media.update(current)
    return asked, questions, failed


def _digest(samples: Sequence[Sample]) -> str:
    digest = hashlib.sha256()
    for s in samples:
        row = [s.key, s.prompt, s.answer, dict(s.options)]
        digest.update(json.dumps([*row, s.earlier] if s.earlier else row).encode())
        for medium in s.media:
            if isinstance(medium, Picture) and isinstance(medium.source, bytes):
                digest.update(medium.source)
            elif isinstance(medium, Picture | Clip):
                path = medium.path if isinstance(medium, Clip) else medium.source
                digest.update(Path(str(path)).name.encode())
    return digest.hexdigest()


def versions() -> dict[str, Any]:
    """Versions of the packages that answers may depend on."""
    installed: dict[str, Any] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            installed[package] = None
    return installed
