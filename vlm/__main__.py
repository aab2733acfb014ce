"""`python -m vlm ask --image photo.jpg "What colour is the cup?" --budget 64`, and `prepare`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import TextStreamer

import vlm
from vlm.progress import quiet_logs


class Answer(TextStreamer):
    """Prints words as they are generated. Keeps the whole text and the time of the first word."""

    def __init__(self, tokenizer: Any, skip_prompt: bool = True) -> None:
        super().__init__(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
        self.began, self.first, self.text = time.perf_counter(), 0.0, ""

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt and not self.first:
            self.first = time.perf_counter() - self.began
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        print(text, flush=True, end="\n" if stream_end else "")


def converse(
    model: Any,
    processor: Any,
    shown: list[dict[str, Any]],
    prepare: Callable[[str], Any],
    asked: list[str],
    new: int,
) -> list[str]:
    """Ask one question after another about the same media. Prints and returns the answers.

    shown: the media in the first turn, as parts of a chat message. prepare: a function from a text
    with placeholders to the inputs of `generate`. Each turn sends the whole conversation.
    """
    talk: list[dict[str, Any]] = []
    answers = []
    for question in asked:
        words = {"type": "text", "text": question}
        talk.append({"role": "user", "content": [*shown, words] if not talk else [words]})
        text = processor.apply_chat_template(talk, add_generation_prompt=True)
        streamer = Answer(processor.tokenizer)
        model.generate(**prepare(text), max_new_tokens=new, do_sample=False, streamer=streamer)
        spent = time.perf_counter() - streamer.began
        print(f"  [first word after {streamer.first * 1e3:.0f} ms, all after {spent * 1e3:.0f} ms]")
        answers.append(streamer.text.strip())
        talk.append({"role": "assistant", "content": [{"type": "text", "text": answers[-1]}]})
    return answers


def show(model: Any, processor: Any, media: list[tuple[str, Any]]) -> tuple[list[Any], Any]:
    """Images and videos in the form that `converse` takes.

    Videos are passed as videos if the model takes them, else as one image a frame.
    """
    images: list[Image.Image] = []
    videos: list[Any] = []
    shown: list[dict[str, Any]] = []
    for kind, item in media:
        if kind == "video" and takes_video(model):
            videos.append(item)
            shown.append({"type": "video"})
        else:
            frames = [Image.fromarray(f) for f in item.frames] if kind == "video" else [item]
            images += frames
            shown += [{"type": "image"}] * len(frames)
    given = {"images": images, "videos": videos}
    given = {name: value for name, value in given.items() if value}

    def prepare(text: str) -> Any:
        return processor(text=text, return_tensors="pt", **given).to(model.device)

    return shown, prepare


def stream(
    model: Any, processor: Any, paths: list[Path], question: str, **options: Any
) -> tuple[list[Any], Any]:
    """The same as `show` for long videos, which are reduced while they are decoded."""
    from compress import stream_video, video_prompt

    videos = []
    for path in paths:
        began = time.perf_counter()
        video = stream_video(model, processor, path, question=question, **options)
        spent = time.perf_counter() - began
        frames = video.grids[0][0]
        sizes = f"{frames} frames, {video.dense} visual tokens, {len(video)} tokens left"
        print(f"  [{path.name}: {sizes}")
        print(f"   after {spent:.1f} s; at most {video.most} tokens held]")
        videos.append(video)
    shown = [{"type": "video" if takes_video(model) else "image"}] * len(videos)
    return shown, lambda text: video_prompt(model, processor, text, videos)


def takes_video(model: Any) -> bool:
    """Whether a model has a placeholder for videos."""
    return getattr(model.config, "video_token_id", None) is not None


def prepare(what: str) -> int:
    """Fetch the parts of the small judge, or the pictures of collages; returns the exit status."""
    from vlm.embedded import collage, small

    try:
        if what == "small":
            print(f"the parts are in {small.prepare()}")
        else:
            folder = collage.prepare(small.CACHE / "collage")
            print(f"the pictures are in {folder}")
            if not collage.published(folder):
                print("they are not those of the published figures, which do not hold for them")
    except (small.PartsError, collage.PicturesError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def watch_arguments(ask: argparse.ArgumentParser) -> None:
    """The options of `--watch`."""
    ask.add_argument(
        "--watch",
        type=Path,
        help="play a video, a folder that fills or a camera as a stream with a bounded cache of "
        "--budget tokens (4096 by default); '@12 What is it?' is asked at second 12; without a "
        "question, questions are read from the terminal",
    )
    ask.add_argument("--memory", default="foveate", help="with --watch: which tokens stay")
    ask.add_argument("--positions", default="original", help="with --watch: where they stand")
    ask.add_argument("--recent", type=int, default=4, help="with --watch: newest steps kept whole")
    ask.add_argument("--instant", action="store_true", help="with --watch: read them afresh")
    ask.add_argument("--fallback", type=float, help="with --watch: nats above which memory is read")
    ask.add_argument("--overlay", type=Path, help="with --watch: a picture of the memory")


def watch(args: argparse.Namespace, budget: Any) -> int:
    """Play a stream and ask about it; returns the exit status."""
    from compress import watch as watched
    from compress.stream.play import play, said_at
    from vlm.media.live import live_frames

    if args.image or args.video:
        raise ValueError("--watch brings its own frames: expected no --image and no --video")
    if args.budget and not isinstance(budget, int):
        raise ValueError(f"--budget is {args.budget}: --watch takes a count of tokens")
    questions = [said_at(text) for text in args.question]
    model, processor = vlm.load(args.model)
    options = {name: getattr(args, name) for name in ("recent", "positions", "instant", "fallback")}
    stream = watched(model, processor, args.memory, budget or 4096, **options)

    def ask(question: str) -> None:
        stream.ask(question, args.max_new_tokens, Answer(processor.tokenizer, skip_prompt=False))

    play(stream, live_frames(args.watch, args.fps), questions, ask)
    if args.overlay is not None:
        stream.overlay(args.overlay)
    return 0


def parser_of(prog: str) -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog=prog, description="Ask a model about media.")
    commands = parser.add_subparsers(dest="command", required=True)
    ask = commands.add_parser("ask", help="ask about pictures and videos")
    ask.add_argument("question", nargs="*", help="a question, and follow-up questions")
    ask.add_argument("--image", type=Path, action="append", default=[], help="may be repeated")
    ask.add_argument("--video", type=Path, action="append", default=[], help="may be repeated")
    ask.add_argument("--frames", type=int, default=8, help="frames of each video")
    ask.add_argument(
        "--model", default="mini", help="'mini', 'small', a folder, or a hub model's name"
    )
    ask.add_argument("--method", help="how tokens are reduced, if --budget is given (duet)")
    ask.add_argument(
        "--budget",
        help="64, 1/9, coverage:0.95, shared:64, or latency:200ms (first token); default: dense",
    )
    ask.add_argument(
        "--schedule", choices=("own", "probed"), default="own", help="in-LLM pruning schedule"
    )
    ask.add_argument("--calibrate", default="own", help="own, none, or size+first_layer+distance")
    ask.add_argument(
        "--keep-phase", type=float, default=0.0, help="share kept for its positions, such as 0.05"
    )
    ask.add_argument("--max-new-tokens", type=int, default=64)
    ask.add_argument(
        "--stream",
        action="store_true",
        help="long videos: reduced before the language model while they are decoded, to --budget "
        "tokens (a count; 8192 by default)",
    )
    ask.add_argument(
        "--fps", type=float, default=1.0, help="frames a second, with --stream or --watch"
    )
    watch_arguments(ask)
    made = commands.add_parser("prepare", help="fetch and convert what is not in the package")
    made.add_argument("what", choices=("small", "collage"), help="the judge's parts, or pictures")
    return parser


def answer(args: argparse.Namespace) -> int:
    """Ask about media as the options say; returns the exit status."""
    # The command line may import `compress`; the library `vlm` does not.
    from compress import Latency, compress
    from compress.defaults import METHOD
    from compress.parse import (
        parse_any_budget,
        parse_calibration,
        parse_latency,
        parse_method,
        parse_schedule,
    )

    latency = parse_latency(args.budget or "")
    budget: Any = parse_any_budget(args.budget) if args.budget and not latency else None
    if args.watch is not None:
        return watch(args, budget)
    if not args.question:
        raise ValueError("there is no question: expected one or more")
    method = parse_method(args.method or METHOD)
    if args.stream:
        return answer_stream(args, method, budget)
    if not (args.image or args.video) and args.budget:
        raise ValueError(f"budget is {args.budget}, but there is no --image and no --video")
    media: list[tuple[str, Any]] = [("image", vlm.read_image(path)) for path in args.image]
    media += [("video", vlm.read_video(p, frames=args.frames)) for p in args.video]
    more: dict[str, Any] = {
        "schedule": parse_schedule(args.schedule),
        "calibrate": parse_calibration(args.calibrate),
        "keep_phase": args.keep_phase,
    }
    model, processor = vlm.load(args.model)
    shown, prepare = show(model, processor, media)
    if latency:
        content = [*shown, {"type": "text", "text": args.question[0]}]
        talk = [{"role": "user", "content": content}]
        call = prepare(processor.apply_chat_template(talk, add_generation_prompt=True))
        budget = Latency(latency, [call])
    reduced: Any = nullcontext()
    if budget is not None:
        reduced = compress(model, method, budget, **more)
    with reduced as attached:
        converse(model, processor, shown, prepare, args.question, args.max_new_tokens)
        if attached is not None:
            print(attached.report())
    return 0


def answer_stream(args: argparse.Namespace, method: Any, budget: Any) -> int:
    """The same for long videos (`--stream`)."""
    from compress.defaults import STREAM_BUDGET

    if args.image or not args.video:
        raise ValueError("--stream is for videos alone: expected --video and no --image")
    budget = STREAM_BUDGET if args.budget is None else budget
    if not isinstance(budget, int) or budget < 2:
        raise ValueError(f"--budget is {args.budget}: --stream takes a count, 2 or more")
    model, processor = vlm.load(args.model)
    options = {"method": method, "budget": budget, "fps": args.fps}
    told = stream(model, processor, args.video, args.question[0], **options)
    converse(model, processor, *told, args.question, args.max_new_tokens)
    return 0


def main(argv: Sequence[str] | None = None, prog: str = "python -m vlm") -> int:
    """The command line; returns the exit status."""
    args = parser_of(prog).parse_args(argv)
    quiet_logs()
    if args.command == "prepare":
        return prepare(args.what)
    try:
        return answer(args)
    except (ValueError, TypeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
