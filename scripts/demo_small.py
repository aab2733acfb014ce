"""`make demo-small`: questions in English about collages and photographs, asked of the small judge.

Needs the judge's parts and the pictures (`python -m vlm prepare small` and `prepare collage`, which
the make target runs first). Prints the answers dense and at a third and a ninth of the tokens, what
they cost, and writes which tokens DUET keeps of one picture.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from PIL import Image

import vlm
from compress import compress
from eval.answerers import ModelAnswerer, Question
from eval.arms import DENSE, Arm
from eval.benchmarks.collage import Collage
from eval.samples import DataError
from scripts.demo import packaged
from vlm.embedded.small import PartsError
from vlm.progress import quiet_logs

ARMS = {"dense": DENSE, "duet 1/3": Arm("duet", 1 / 3), "duet 1/9": Arm("duet", 1 / 9)}
COLLAGES, FIRST_SCENE = 10, 200  # questions; after the scenes of the tables
PHOTOGRAPHS = {
    "chelsea.png": [("Is there a cat in the picture?", "yes")],
    "rocket.jpg": [("What can you see in the picture?", "rocket"), ("Can you see a dog?", "no")],
}


def asked() -> list[tuple[Image.Image, str, str, int]]:
    """Pictures, questions, right answers, and the most tokens of an answer."""
    samples = [
        s
        for s in Collage("val", FIRST_SCENE + 2).load().samples
        if int(s.cluster.split("-")[1]) >= FIRST_SCENE
    ]
    made = [(s.media[0].load(), s.prompt, s.answer, s.max_new_tokens) for s in samples[:COLLAGES]]
    for name, questions in PHOTOGRAPHS.items():
        picture = Image.open(packaged("skimage", f"data/{name}")).convert("RGB")
        made += [(picture, question, answer, 8) for question, answer in questions]
    return made


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.demo_small", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo-small.png"))
    args = parser.parse_args(argv)
    quiet_logs()
    try:
        model, processor = vlm.load("small")
        questions = asked()
    except (PartsError, DataError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    answerer = ModelAnswerer(model, processor, "small", share_vision=False)
    print(f"{'question':56}{'right':15}" + "".join(f"{name:18}" for name in ARMS))
    spent = defaultdict(list)
    for picture, text, right, most in questions:
        line = f"{text.replace(chr(10), ' ')[:54]:56}{right:15}"
        for name, arm in ARMS.items():
            (reply,) = answerer.answer([Question(text, (picture,), most)], arm, 0)
            said = reply.text.strip()
            wrong = said.removesuffix(".").lower() != right.lower()
            line += f"{said[:14] + ' x' * wrong:18}"
            spent[name].append(reply.figures)
        print(line, flush=True)
    dense = spent["duet 1/3"][0]
    print(f"\n{'':12}tokens, mean over layers   ms an answer, median   keys and values, KiB")
    for name, rows in spent.items():
        tokens, cache = rows[0].get("tokens", dense["dense"]), rows[0].get("cache", 0.0)
        seconds = statistics.median(row["seconds"] for row in rows)
        cache = cache or dense["dense_cache"]
        print(f"{name:12}{tokens:24.0f}{1e3 * seconds:24.0f}{cache / 1024:24.0f}")
    picture, question, *_ = questions[0]
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with compress(model, "duet", budget=1 / 9) as compression:
        model.generate(**processor(images=picture, text=text), max_new_tokens=1)
        compression.overlay(picture, args.out)
    print(f"\nWhich tokens DUET keeps at 1/9: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
