"""Whose attention finds the things in a picture: `python -m scripts.study_saliency`.

The small judge's encoder sees collages. In each of its layers the class token's attention, and the
attention that a token receives from all, rank the tokens, and the highest are kept. Counted are the
things with at least one kept token, and the kept tokens that lie on things, beside those of a draw
and of even spacing. The language model does not run.

Writes `<name>.json` (raw figures, versions, hardware, command), `<name>.md` and `<name>.png`.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch

import vlm
from scripts.common import add_folders, canvas, facts, write_json, write_table
from vlm.attention import SegmentHeads, watching
from vlm.embedded.collage import Pictures, draw, make_scene
from vlm.embedded.collage.drawing import look_size
from vlm.embedded.collage.scene import IMAGE_SIZE, Scene
from vlm.embedded.small import CACHE, GRID

RULES = ("cls", "received")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_saliency", description=__doc__)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--keep", type=int, default=28, help="tokens of 256")
    parser.add_argument("--split", default="val")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="saliency", help="of the files that are written")
    add_folders(parser, work="out/saliency")
    args = parser.parse_args(argv)
    model, processor = vlm.load("small")
    pictures = Pictures(CACHE / "collage")
    generator = torch.Generator().manual_seed(args.seed)
    found: dict[str, list[tuple[int, int, int]]] = {}
    for seed in range(args.scenes):
        scene = make_scene(seed, args.split, pictures)
        inputs = processor(text="<image>", images=[draw(scene)], return_tensors="pt")
        ranks = saliencies(model, inputs["pixel_values"])
        ranks["random"] = torch.rand(GRID**2, generator=generator)
        for name, saliency in ranks.items():
            found.setdefault(name, []).append(hits(scene, saliency.topk(args.keep).indices))
        places = torch.linspace(0, GRID**2 - 1, args.keep).round().long()
        found.setdefault("uniform", []).append(hits(scene, places))
    rows = []
    for name, counts in found.items():
        things, touched, inside = (sum(column) for column in zip(*counts, strict=True))
        kept = args.keep * args.scenes
        rows.append({"source": name, "things": touched / things, "inside": inside / kept})
    own = facts(
        "study_saliency", argv, scenes=args.scenes, keep=args.keep, seed=args.seed, rows=rows
    )
    render(write_json(args.output / f"{args.name}.json", own), args.output / args.name)
    return 0


@torch.no_grad()
def saliencies(model: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """(N,) of one picture by "<rule> <layer>", layers from 1."""
    (expert,) = model.model.experts.values()
    family, encoder = expert.family, expert.encoder
    layers = list(enumerate(family.layers(encoder), 1))
    modules = {f"{n} {k}": m for n, layer in layers for k, m in family.watch(layer).items()}
    with watching(modules) as seen:
        family.run(encoder, pixels)
    ranks: dict[str, torch.Tensor] = {}
    for number, layer in layers:
        calls = {name: seen[f"{number} {name}"] for name in family.watch(layer)}
        heads = SegmentHeads([family.attention(layer, calls)], True, family.prefix(encoder))
        ranks |= {f"{rule} {number}": heads.saliency(rule) for rule in RULES}
    return ranks


def hits(scene: Scene, kept: torch.Tensor) -> tuple[int, int, int]:
    """Things, those that a kept token lies on, and kept tokens that lie on one."""
    at = (np.arange(GRID) + 0.5) * IMAGE_SIZE / GRID
    y, x = at[kept.numpy() // GRID], at[kept.numpy() % GRID]
    on = []
    for thing in scene.things:
        width, height = look_size(thing)
        on.append(((x - thing.x) / width) ** 2 + ((y - thing.y) / height) ** 2 < 0.25)
    return len(on), sum(bool(one.any()) for one in on), int(np.any(on, axis=0).sum())


def render(found: dict[str, Any], path: Any) -> None:
    """Write the table and the picture of a report."""
    rows = {row["source"]: row for row in found["rows"]}
    layers = [name.split()[1] for name in rows if name.startswith("cls ")]
    lines = [f"{'':12}{'things touched':>16}{'tokens on things':>18}"]
    for name, row in rows.items():
        lines.append(f"{name:12}{row['things']:>16.1%}{row['inside']:>18.1%}")
    write_table(path, "\n".join(lines))
    figure, axes = canvas(7, 3.4)
    for rule, hue in zip(RULES, ("#E69F00", "#0072B2"), strict=True):
        shares = [100 * rows[f"{rule} {layer}"]["things"] for layer in layers]
        label = "class token's attention" if rule == "cls" else "attention received"
        axes.plot([int(layer) for layer in layers], shares, "o-", color=hue, label=label)
    for name, style in (("random", ":"), ("uniform", "--")):
        axes.axhline(100 * rows[name]["things"], color="black", linestyle=style, label=name)
    axes.set_xlabel("layer of the encoder (features come from 5, 8 and 10)")
    axes.set_ylabel("things with a kept token, %")
    axes.set_title(f"{found['keep']} of {GRID**2} tokens, {found['scenes']} validation collages")
    axes.legend(frameon=False)
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    sys.exit(main())
