"""One process of `test_zero`: a few steps on batches, some without pictures.

    python -m tests.vlm.model.zero_worker STAGE

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set.

Prints the mean losses of the steps, from rank 0.
"""

from __future__ import annotations

import os
import sys

import deepspeed
import torch
from torch import distributed

from tests.vlm import encoders, models


def main(stage: int) -> None:
    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    experts = [encoders.expert("clip", frozen=False), encoders.expert("sam")]
    fusion = {"window": {"sam": 2}, "scheme": {"sam": {"type": "Compact", "by": "row"}}}
    model, processor = models.build(experts, fusion)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_force_ds_cpu_optimizer": False,
    }
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=config)
    engine.train()
    one, two, three = (models.picture(seed) for seed in range(3))
    text = processor(text="no picture here at all")
    image = processor(images=one, text="a <image> b")
    both = processor(images=one, videos=[[two, three]], text="<image> and <video>")
    video = processor(videos=[[one, two, three]], text="the <video>")
    losses = []
    for pair in [(image, text), (text, text), (image, both), (video, text), (image, image)]:
        batch = pair[distributed.get_rank()]
        loss = engine(**batch, labels=batch["input_ids"]).loss
        engine.backward(loss)
        engine.step()
        mean = loss.detach().clone()
        distributed.all_reduce(mean)
        losses.append(round(float(mean) / distributed.get_world_size(), 4))
    if distributed.get_rank() == 0:
        print("losses", *losses, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
    main(int(sys.argv[1]))
