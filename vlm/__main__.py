"""`python -m vlm ask --image photo.jpg "What is left of the cup?" --budget 64`."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import TextStreamer

import vlm


class Answer(TextStreamer):
    """Prints words as they come and keeps when the first one came and the whole text."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.began, self.first, self.text = time.perf_counter(), 0.0, ""

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt and not self.first:
            self.first = time.perf_counter() - self.began
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        print(text, flush=True, end="\n" if stream_end else "")


def converse(
    model: Any, processor: Any, media: list[tuple[str, Any]], asked: list[str], new: int
) -> list[str]:
    """Ask one question after another about the same media; prints and returns the answers.

    Each turn sends the whole conversation again. Videos go in as videos where the model takes
    them, else as one image a frame.
    """
    takes_video = getattr(model.config, "video_token_id", None) is not None
    images: list[Image.Image] = []
    videos: list[Any] = []
    content: list[dict[str, Any]] = []
    for kind, item in media:
        if kind == "video" and takes_video:
            videos.append(item)
            content.append({"type": "video"})
        else:
            frames = [Image.fromarray(f) for f in item] if kind == "video" else [item]
            images += frames
            content += [{"type": "image"}] * len(frames)
    talk: list[dict[str, Any]] = []
    answers = []
    for question in asked:
        words = {"type": "text", "text": question}
        talk.append({"role": "user", "content": [*content, words] if not talk else [words]})
        text = processor.apply_chat_template(talk, add_generation_prompt=True)
        given = {"images": images or None, "videos": videos or None}
        given = {name: value for name, value in given.items() if value is not None}
        inputs = processor(text=text, return_tensors="pt", **given).to(model.device)
        streamer = Answer(processor.tokenizer)
        model.generate(**inputs, max_new_tokens=new, do_sample=False, streamer=streamer)
        spent = time.perf_counter() - streamer.began
        print(f"  [first word after {streamer.first * 1e3:.0f} ms, all after {spent * 1e3:.0f} ms]")
        answers.append(streamer.text.strip())
        talk.append({"role": "assistant", "content": [{"type": "text", "text": answers[-1]}]})
    return answers


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vlm", description="Ask a model about media.")
    commands = parser.add_subparsers(dest="command", required=True)
    ask = commands.add_parser("ask", help="ask about pictures and videos")
    ask.add_argument("question", nargs="+", help="a question, and follow-up questions")
    ask.add_argument("--image", type=Path, action="append", default=[], help="may be repeated")
    ask.add_argument("--video", type=Path, action="append", default=[], help="may be repeated")
    ask.add_argument("--frames", type=int, default=8, help="frames of each video")
    ask.add_argument("--model", default="mini", help="'mini', a folder, or a hub model's name")
    ask.add_argument(
        "--method", default="duet", help="how tokens are reduced, if --budget is given"
    )
    ask.add_argument("--budget", help="tokens (64) or a share (0.11, 1/9); default: dense")
    ask.add_argument("--max-new-tokens", type=int, default=64)
    args = parser.parse_args(argv)
    # A command may use a room that lies further on; the library does not.
    from compress import compress
    from compress.parse import parse_budget, parse_method

    try:
        budget = parse_budget(args.budget) if args.budget else None
        method = parse_method(args.method)
        media: list[tuple[str, Any]] = [("image", vlm.read_image(path)) for path in args.image]
        media += [("video", vlm.read_video(p, frames=args.frames).frames) for p in args.video]
        if not media and budget is not None:
            raise ValueError(f"budget is {args.budget}, but there is no --image and no --video")
        model, processor = vlm.load(args.model)
        with nullcontext() if budget is None else compress(model, method, budget) as attached:
            converse(model, processor, media, args.question, args.max_new_tokens)
            if attached is not None:
                print(attached.report())
    except (ValueError, TypeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
