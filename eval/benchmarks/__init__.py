"""The benchmarks. Each is a dataclass in its own file."""

from __future__ import annotations

import typing
from dataclasses import MISSING, fields
from pathlib import Path

from eval.benchmarks.collage import Collage
from eval.benchmarks.embedded import Embedded
from eval.benchmarks.gqa import GQA
from eval.benchmarks.mmbench import MMBench
from eval.benchmarks.mme import MME
from eval.benchmarks.ovobench import OVOBench
from eval.benchmarks.pope import POPE
from eval.benchmarks.scienceqa import ScienceQA
from eval.benchmarks.streamingbench import StreamingBench
from eval.benchmarks.textvqa import TextVQA
from eval.benchmarks.videomme import VideoMME
from eval.samples import Benchmark

BENCHMARKS: dict[str, type[Benchmark]] = {
    cls.name: cls
    for cls in (
        MMBench,
        VideoMME,
        OVOBench,
        StreamingBench,
        TextVQA,
        POPE,
        GQA,
        MME,
        ScienceQA,
        Embedded,
        Collage,
    )
}


def parse_benchmark(text: str) -> Benchmark:
    """A benchmark from "name:key=value,key=value": "pope:data=coco,media=val2014".

    Raises ValueError for an unknown name, an unknown or missing key, or a value of another type.
    """
    name, _, rest = text.partition(":")
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark {name!r}: expected one of {', '.join(BENCHMARKS)}")
    kind = BENCHMARKS[name]
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind) if f.name != "judge"}
    given = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.partition("=")
        if key not in known or not equals:
            raise ValueError(
                f"benchmark {text!r}: {part!r} is no option: expected {', '.join(known)}, each as "
                "key=value"
            )
        given[key] = _converted(name, key, value, hints[key])
    missing = [key for key, f in known.items() if f.default is MISSING and key not in given]
    if missing:
        raise ValueError(
            f"benchmark {text!r}: {missing[0]} is missing, as in {name}:{missing[0]}=..."
        )
    return kind(**given)


def _converted(name: str, key: str, value: str, hint: typing.Any) -> typing.Any:
    kinds = [k for k in typing.get_args(hint) if k is not type(None)] or [hint]
    try:
        if kinds[0] is bool:
            return {"true": True, "false": False}[value.lower()]
        return kinds[0](value) if kinds[0] in (int, float, Path) else value
    except (ValueError, KeyError) as error:
        wanted = "true or false" if kinds[0] is bool else kinds[0].__name__
        raise ValueError(f"benchmark {name}: {key} is {value!r}; expected {wanted}") from error


__all__ = [
    "BENCHMARKS",
    "GQA",
    "MME",
    "POPE",
    "Collage",
    "Embedded",
    "MMBench",
    "OVOBench",
    "ScienceQA",
    "StreamingBench",
    "TextVQA",
    "VideoMME",
    "parse_benchmark",
]
