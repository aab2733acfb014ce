"""Write what was kept of a picture to a file, read it back, and answer from the file alone.

python examples/replay_kept.py --output kept.safetensors

The file holds all that another engine needs: embeddings, positions and which tokens they stand for.
Here the stock language model reads it, without pixels and without a compression. For vLLM see
examples/replay_in_vllm.py, which takes a file written with `--positions compact`.
"""

from __future__ import annotations

import argparse

import torch
from skimage import data

import vlm
from compress import compress, load_export, picture_hash, save_export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="kept.safetensors")
    parser.add_argument("--positions", choices=("original", "compact"), default="original")
    options = parser.parse_args()
    model, processor = vlm.load("mini-1d")
    picture, image_token = data.chelsea(), model.config.image_token_id
    prompt = "USER: <image>\nWhat is in the picture? ASSISTANT:"
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    with torch.no_grad(), compress(model, "divprune", 48, positions=options.positions) as c:
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        save_export(options.output, c.export([picture]), prompt=prompt)
        print(c.report())
    print("compressed:", processor.decode(ids[0, inputs["input_ids"].shape[1] :]))

    (kept,), metadata = load_export(options.output)
    assert kept["source_hash"] == picture_hash(picture)
    print(f"{options.output}: {kept['method']}, {len(kept['features'])} tokens of {kept['grid']}")
    text = processor.tokenizer(metadata["prompt"], return_tensors="pt").input_ids[0]
    at = int((text == image_token).nonzero())
    before, after = text[:at], text[at + 1 :]
    words = model.get_input_embeddings()
    embeds = torch.cat([words(before), kept["features"], words(after)])[None]
    after_at = kept["next_position"] + torch.arange(len(after))
    positions = torch.cat([torch.arange(at), kept["positions"][:, 0, 0], after_at])[None].long()
    said: list[int] = []
    with torch.no_grad():
        while len(said) < 8 and processor.tokenizer.eos_token_id not in said:
            mask = torch.ones_like(positions)  # without one, a jump in positions is a new sample
            call = {"inputs_embeds": embeds, "position_ids": positions, "attention_mask": mask}
            states = model.model.language_model(**call).last_hidden_state
            said.append(int(model.lm_head(states[:, -1]).argmax()))
            embeds = torch.cat([embeds, words(torch.tensor([said[-1:]]))], 1)
            positions = torch.cat([positions, positions[:, -1:] + 1], 1)
    print("replayed:  ", processor.decode(said))


if __name__ == "__main__":
    main()
