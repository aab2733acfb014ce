"""A stream in a file: safetensors, with what is no tensor as JSON beside them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from compress.errors import StreamError
from compress.stream.memory import Rows, states_of
from compress.stream.step import Step
from compress.stream.track import Track
from positions.held import PER_TOKEN, Held
from vlm.fingerprint import fingerprint

FORMAT = 1
_READER = ("number", "cursor", "first_time", "offset", "grid", "size")


def write(
    path: str | os.PathLike[str],
    track: Track,
    pending: Sequence[tuple[np.ndarray, float]],
    last_time: float | None,
) -> None:
    """Save a stream; the file is there whole or not at all."""
    tensors: dict[str, Tensor] = {"generator": track.generator.get_state()}
    for layer, held in enumerate(track.memory.cache.layers):
        for name in ("keys", "values"):
            value = getattr(held, name, None)
            if isinstance(value, Tensor):
                tensors[f"layers.{layer}.{name}"] = value
        tensors |= {f"layers.{layer}.{name}": x for name, x in states_of(held).items()}
    for group, rows in enumerate(track.memory.rows):
        tensors |= _rows_as_tensors(f"rows.{group}", rows)
    for step in track.recents:
        tensors |= _step_as_tensors(f"recents.{step.number}", step)
    for number, picture in track.pictures.items():
        tensors[f"pictures.{number}"] = torch.from_numpy(picture)
    for number, (frame, _) in enumerate(pending):
        tensors[f"pending.{number}"] = torch.from_numpy(frame)
    facts = {
        "format": FORMAT,
        "model": fingerprint(track.model),
        "options": repr(track.options),
        "reader": {name: getattr(track.reader, name) for name in _READER},
        "recents": [[step.number, step.time, step.advance] for step in track.recents],
        "pending": [time for _, time in pending],
        "last_time": last_time,
        "seen": track.seen,
        "most": track.most,
        "evicted": track.evicted,
        "time_axis": track.reader.time_axis,
    }
    data = save(
        {name: x.detach().cpu().contiguous().clone() for name, x in tensors.items()},
        {"foveate_stream": json.dumps(facts)},
    )
    target = Path(path)
    beside = target.with_name(f".{target.name}.part")
    try:
        beside.write_bytes(data)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def read(
    path: str | os.PathLike[str], track: Track
) -> tuple[list[tuple[np.ndarray, float]], float | None]:
    """Put a saved stream into a fresh track; returns its pending frames and last time.

    Raises StreamError if the file is no stream, or one of another model or with other options.
    """
    try:
        with safe_open(os.fspath(path), "pt") as file:
            text = (file.metadata() or {}).get("foveate_stream")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(text or "null")
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise StreamError(f"{os.fspath(path)} cannot be read as a stream: {error}") from error
    _check(path, facts, track)
    try:
        _restore(track, tensors, facts)
        pending = [
            (tensors[f"pending.{number}"].numpy(), time)
            for number, time in enumerate(facts["pending"])
        ]
        return pending, facts["last_time"]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise StreamError(f"{os.fspath(path)} is damaged: {error!r}") from error


def _check(path: Any, facts: Any, track: Track) -> None:
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else None
        raise StreamError(f"{path} holds format {found!r}: expected a stream of format {FORMAT}")
    own = fingerprint(track.model)
    if facts["model"] != own:
        raise StreamError(
            f"{path} was saved by a model with fingerprint {facts['model']}, and this one has "
            f"{own}: expected the same weights in the same dtype"
        )
    if facts["options"] != repr(track.options):
        raise StreamError(
            f"{path} was saved with {facts['options']}: expected the same options, not "
            f"{track.options!r}"
        )


def _restore(track: Track, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    memory, device = track.memory, track.model.get_input_embeddings().weight.device
    track.generator.set_state(tensors["generator"])
    for layer, held in enumerate(memory.cache.layers):
        for name in ("keys", "values"):
            if (key := f"layers.{layer}.{name}") in tensors:
                setattr(held, name, tensors[key].to(device))
        for name, state in states_of(held).items():
            state.copy_(tensors[f"layers.{layer}.{name}"])
    axes = (facts["time_axis"], track.reader.one_axis)
    memory.rows = [
        _rows_of(f"rows.{group}", tensors, axes, device) for group in range(len(memory.rows))
    ]
    track.recents.clear()
    for number, time, advance in facts["recents"]:
        track.recents.append(_step_of(number, time, advance, tensors, device))
    track.pictures = {
        int(name.split(".")[1]): x.numpy()
        for name, x in tensors.items()
        if name.startswith("pictures.")
    }
    for name, value in facts["reader"].items():
        setattr(track.reader, name, tuple(value) if isinstance(value, list) else value)
    track.seen, track.most, track.evicted = facts["seen"], facts["most"], facts["evicted"]


def _rows_as_tensors(name: str, rows: Rows) -> dict[str, Tensor]:
    parts = {part: getattr(rows.held, part) for part in PER_TOKEN}
    parts |= {"cell": rows.cell, "draw": rows.draw}
    parts |= {f"fields.{field}": x for field, x in rows.fields.items()}
    return {f"{name}.{part}": x for part, x in parts.items()}


def _rows_of(
    name: str, tensors: dict[str, Tensor], axes: tuple[bool, bool], device: torch.device
) -> Rows:
    parts = {part: tensors[f"{name}.{part}"] for part in PER_TOKEN}
    held = Held(**parts, time_axis=axes[0], one_axis=axes[1])
    return Rows(
        held,
        tensors[f"{name}.cell"],
        tensors[f"{name}.draw"],
        _fields(f"{name}.fields.", tensors, device),
    )


def _step_as_tensors(name: str, step: Step) -> dict[str, Tensor]:
    parts = {"embeds": step.embeds, "cell": step.cell, "home": step.home}
    parts |= {f"deepstack.{number}": x for number, x in enumerate(step.deepstack)}
    parts |= {f"fields.{field}": x for field, x in step.fields.items()}
    parts["picture"] = torch.from_numpy(step.picture)
    return {f"{name}.{part}": x for part, x in parts.items()}


def _step_of(
    number: int, time: float, advance: float, tensors: dict[str, Tensor], device: torch.device
) -> Step:
    name = f"recents.{number}"
    added = _fields(f"{name}.deepstack.", tensors, device)
    return Step(
        number,
        time,
        tensors[f"{name}.embeds"].to(device),
        tuple(added[str(layer)] for layer in range(len(added))),
        tensors[f"{name}.cell"],
        tensors[f"{name}.home"],
        advance,
        _fields(f"{name}.fields.", tensors, device),
        tensors[f"{name}.picture"].numpy(),
    )


def _fields(prefix: str, tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): x.to(device)
        for name, x in tensors.items()
        if name.startswith(prefix)
    }
