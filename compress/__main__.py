"""`python -m compress photo.jpg --budget 64 --method all --out sheet.png`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from PIL import Image

import vlm
from compress import compress, get_method, list_methods
from compress.overlay import legend, overlay, sheet

PROMPT = "Describe the picture."


def main(argv: list[str] | None = None) -> int:
    """Draw what methods keep of pictures or of a video's frames, and print what it costs."""
    parser = argparse.ArgumentParser(
        prog="python -m compress", description="Draw what methods keep of a picture or a video."
    )
    parser.add_argument("media", type=Path, help="a picture, or a video")
    parser.add_argument("--method", default="duet", help="a name, several with commas, or 'all'")
    parser.add_argument("--budget", default="0.33", help="tokens (64) or a share (0.11)")
    parser.add_argument("--prompt", default=PROMPT, help="the question that comes with it")
    parser.add_argument("--frames", type=int, default=6, help="frames of a video")
    parser.add_argument("--model", default="mini", help="'mini', a folder, or a hub model's name")
    parser.add_argument("--out", type=Path, default=Path("out/compress.png"))
    args = parser.parse_args(argv)
    try:
        names = list_methods() if args.method == "all" else args.method.split(",")
        methods = [get_method(name) for name in names]
        budget = float(args.budget) if "." in args.budget else int(args.budget)
        frames = read_frames(args.media, args.frames)
        model, processor = vlm.load(args.model)
        rows = []
        for name, method in zip(names, methods, strict=True):
            with compress(model, method, budget) as attached:
                ask(model, processor, frames, args.prompt)
                print(attached.report(), end="\n\n")
                rows += [
                    overlay(frame, attached.record.stages(index), title=name)
                    for index, frame in enumerate(frames)
                ]
    except (ValueError, TypeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    drawn = sheet(rows, columns=1)
    write(
        sheet([drawn, legend(drawn.width - 20, f"{args.media.name}, budget {budget}")], 1), args.out
    )
    return 0


def read_frames(path: Path, frames: int) -> list[Image.Image]:
    """A picture as one frame, or evenly spaced frames of a video."""
    try:
        return [vlm.read_image(path)]
    except vlm.MediaError as no_picture:
        try:
            video = vlm.read_video(path, frames=frames)
        except vlm.MediaError as no_video:
            raise no_video from no_picture
    return [Image.fromarray(frame) for frame in video.frames]


def ask(model: Any, processor: Any, frames: list[Image.Image], prompt: str, new: int = 12) -> str:
    """Ask about some pictures in one prompt; returns the answer."""
    content: list[dict[str, str]] = [{"type": "image"} for _ in frames]
    content.append({"type": "text", "text": prompt})
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(text=text, images=frames, return_tensors="pt").to(model.device)
    out = model.generate(**inputs, max_new_tokens=new, do_sample=False)
    answer = out[0, inputs["input_ids"].shape[1] :]
    return str(processor.tokenizer.decode(answer, skip_special_tokens=True)).strip()


def write(picture: Image.Image, path: Path) -> None:
    """Save a picture; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
