"""`make demo-small`: questions in English about collages and photographs, asked of the small judge.

Needs the judge's parts and the pictures (`python -m vlm prepare small` and `prepare collage`, which
the make target runs first). Prints the answers dense and at a third and a ninth of the tokens and
what they cost, and draws what is left of one picture, with the answers about it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

import vlm
from compress import compress
from compress.report.overlay import panel, sheet
from eval.answerers import ModelAnswerer, Question
from eval.arms import DENSE, Arm
from eval.benchmarks.collage import Collage
from eval.samples import DataError, Sample
from scripts.demo import packaged
from vlm.embedded.small import PartsError
from vlm.progress import quiet_logs
from vlm.prompts import picture_prompt

METHOD = "divprune"  # prunes once, so what is drawn is all that the language model gets
ARMS = {"dense": DENSE, "1/3": Arm(METHOD, 1 / 3), "1/9": Arm(METHOD, 1 / 9)}
COLLAGES, FIRST_SCENE = 10, 200  # questions; after the scenes of the tables
DRAWN_SCENE, DRAWN_QUESTIONS = 201, 4
INK, SOFT, RIGHT, WRONG = (30, 30, 34), (110, 110, 118), (0, 120, 60), (190, 30, 30)
PHOTOGRAPHS = {
    "chelsea.png": [("Is there a cat in the picture?", "yes")],
    "rocket.jpg": [("What can you see in the picture?", "rocket"), ("Can you see a dog?", "no")],
}


def scenes(first: int, count: int) -> list[Sample]:
    """The questions about `count` validation collages from number `first` on."""
    samples = Collage("val", first + count).load().samples
    return [s for s in samples if int(s.cluster.split("-")[1]) >= first]


def asked() -> list[tuple[Image.Image, str, str, int]]:
    """Pictures, questions, right answers, and the most tokens of an answer."""
    samples = scenes(FIRST_SCENE, 2)[:COLLAGES]
    made = [(s.media[0].load(), s.prompt, s.answer, s.max_new_tokens) for s in samples]
    for name, questions in PHOTOGRAPHS.items():
        picture = Image.open(packaged("skimage", f"data/{name}")).convert("RGB")
        made += [(picture, question, answer, 8) for question, answer in questions]
    return made


def is_right(said: str, answer: str) -> bool:
    """Whether an answer is the expected one, ignoring case and a full stop."""
    return said.strip().removesuffix(".").lower() == answer.lower()


def ask_all(answerer: ModelAnswerer, questions: list[Any]) -> dict[str, list[dict[str, float]]]:
    """Print questions and answers; returns the figures of each configuration."""
    print(f"{'question':56}{'right':15}" + "".join(f"{name:18}" for name in ARMS))
    spent = defaultdict(list)
    for picture, text, right, most in questions:
        line = f"{text.replace(chr(10), ' ')[:54]:56}{right:15}"
        for name, arm in ARMS.items():
            (reply,) = answerer.answer([Question(text, (picture,), most)], arm, 0)
            said = reply.text.strip()
            line += f"{said[:14] + ' x' * (not is_right(said, right)):18}"
            spent[name].append(reply.figures)
        print(line, flush=True)
    return spent


def costs(spent: dict[str, list[dict[str, float]]]) -> None:
    """Print tokens, times and bytes of each configuration."""
    dense = spent["1/3"][0]
    print(f"\n{'':12}tokens, mean over layers   ms an answer, median   keys and values, KiB")
    for name, rows in spent.items():
        tokens, cache = rows[0].get("tokens", dense["dense"]), rows[0].get("cache", 0.0)
        seconds = statistics.median(row["seconds"] for row in rows)
        cache = cache or dense["dense_cache"]
        print(f"{name:12}{tokens:24.0f}{1e3 * seconds:24.0f}{cache / 1024:24.0f}")


def draw(answerer: ModelAnswerer) -> Image.Image:
    """What is left of one collage, and the answers about it, one column a configuration."""
    samples = scenes(DRAWN_SCENE, 1)
    samples = [s for s in samples if s.groups["category"] != "choice"][:DRAWN_QUESTIONS]
    picture = samples[0].media[0].load()
    large = picture.resize((336, 336), Image.Resampling.LANCZOS)
    inputs = picture_prompt(answerer.model, answerer.processor, [picture], samples[0].prompt)
    columns = []
    for name, arm in ARMS.items():
        if arm.method is None:
            shown = Image.new("RGB", (336, 376), (250, 250, 248))
            shown.paste(large, (0, 40))
            pen = ImageDraw.Draw(shown)
            pen.text((0, 2), "dense", fill=INK, font=ImageFont.load_default(16))
            pen.text((0, 21), "all 256 tokens", fill=SOFT, font=ImageFont.load_default(13))
        else:
            with compress(answerer.model, METHOD, budget=arm.budget) as attached:
                answerer.model.generate(**inputs, max_new_tokens=1, do_sample=False)
                ((_, grid, reduction),) = attached.steps(0)
            shown = panel(large, f"{METHOD}, {name} of the tokens", grid, reduction)
        questions = [Question(s.prompt, (picture,), s.max_new_tokens) for s in samples]
        replies = [answerer.answer([question], arm, 0)[0].text for question in questions]
        columns.append(told(shown, samples, replies))
    return sheet(columns, columns=len(columns))


def told(shown: Image.Image, samples: list[Sample], replies: list[str]) -> Image.Image:
    """A panel with questions and answers under it."""
    out = Image.new("RGB", (shown.width, shown.height + 10 + 48 * len(samples)), (250, 250, 248))
    out.paste(shown, (0, 0))
    pen = ImageDraw.Draw(out)
    for number, (sample, reply) in enumerate(zip(samples, replies, strict=True)):
        top = shown.height + 8 + 48 * number
        pen.text((0, top), sample.prompt, fill=SOFT, font=ImageFont.load_default(15))
        good = is_right(reply, str(sample.answer))
        words = reply.strip() + ("" if good else f"   (right: {sample.answer})")
        font, fill = ImageFont.load_default(19), RIGHT if good else WRONG
        pen.text((0, top + 19), words, fill=fill, font=font)
    return out


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.demo_small", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo-small.png"))
    args = parser.parse_args(argv)
    quiet_logs()
    began = time.monotonic()
    try:
        model, processor = vlm.load("small")
        questions = asked()
    except (PartsError, DataError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    answerer = ModelAnswerer(model, processor, "small", share_vision=False)
    print(f"dense, and {METHOD} at 1/3 and 1/9 of the tokens")
    costs(ask_all(answerer, questions))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(answerer).save(args.out)
    print(f"\nWhat is left of a picture: {args.out}. Done in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
