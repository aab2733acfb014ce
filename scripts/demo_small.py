"""`make demo-small`: questions in English about collages, asked of the small judge.

Needs the judge's parts and the pictures (`python -m vlm prepare small` and `prepare collage`, which
the make target runs first). Prints the answers dense and at a third and a ninth of the tokens, with
milliseconds, and writes which tokens DUET keeps of one picture.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import vlm
from compress import compress
from eval.answerers import ModelAnswerer, Question
from eval.arms import DENSE, Arm
from eval.benchmarks.collage import Collage

ARMS = {"dense": DENSE, "duet 1/3": Arm("duet", 1 / 3), "duet 1/9": Arm("duet", 1 / 9)}
QUESTIONS, FIRST_SCENE = 12, 200  # after the scenes of the tables


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.demo_small", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo-small.png"))
    args = parser.parse_args(argv)
    samples = Collage("val", FIRST_SCENE + 2).load().samples
    samples = [s for s in samples if int(s.cluster.split("-")[1]) >= FIRST_SCENE][:QUESTIONS]
    model, processor = vlm.load("small")
    answerer = ModelAnswerer(model, processor, "small", share_vision=False)
    print(f"{'question':62}{'right':16}" + "".join(f"{name:28}" for name in ARMS))
    for sample in samples:
        line = f"{sample.prompt.replace(chr(10), ' ')[:60]:62}{sample.answer:16}"
        for arm in ARMS.values():
            asked = [Question(sample.prompt, (sample.media[0].load(),), sample.max_new_tokens)]
            (reply,) = answerer.answer(asked, arm, 0)
            said = reply.text.strip()
            wrong = "" if said.lower() == sample.answer.lower() else "  x"
            tokens = reply.figures.get("tokens", 256)
            spent = f"({tokens:.0f} tokens, {1e3 * reply.figures['seconds']:.0f} ms)"
            line += f"{said[:10] + wrong:13}{spent:15} "
        print(line, flush=True)
    picture = samples[0].media[0].load()
    prompt = [{"type": "image"}, {"type": "text", "text": samples[0].prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": prompt}])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with compress(model, "duet", budget=1 / 9) as compression:
        model.generate(**processor(images=picture, text=text), max_new_tokens=1)
        compression.overlay(picture, args.out)
    print(f"which tokens DUET keeps: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
