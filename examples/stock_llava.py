"""Ask a stock LLaVA about a picture, dense and with fewer visual tokens.

python examples/stock_llava.py                      # the embedded model, no download
python examples/stock_llava.py --model llava-hf/llava-1.5-7b-hf --image photo.jpg
"""

from __future__ import annotations

import argparse

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlm
from compress import compress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a folder or a hub name; the embedded LLaVA by default")
    parser.add_argument("--image", help="a picture; the cat of scikit-image by default")
    parser.add_argument("--question", default="What is in the picture?")
    parser.add_argument("--method", default="duet")
    parser.add_argument("--budget", type=float, default=1 / 3, help="share of the visual tokens")
    options = parser.parse_args()
    if options.model is None:
        model, processor = vlm.load("mini-1d")
    else:
        model = AutoModelForImageTextToText.from_pretrained(options.model, device_map="auto")
        processor = AutoProcessor.from_pretrained(options.model)
    if options.image is None:
        from skimage import data

        image = data.chelsea()
    else:
        image = vlm.read_image(options.image)
    prompt = f"USER: <image>\n{options.question} ASSISTANT:"
    inputs = processor(images=image, text=prompt, return_tensors="pt").to(model.device)

    def answer() -> str:
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        text = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])[0]
        return str(text)

    print("dense:  ", answer())
    with compress(model, options.method, budget=options.budget) as c:
        print("reduced:", answer())
        print(c.report())


if __name__ == "__main__":
    main()
