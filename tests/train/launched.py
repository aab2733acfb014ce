"""Several runs in the same launched processes, since starting them costs more than a tiny run.

deepspeed --num_accelerators 2 --module tests.train.launched jobs.json

jobs.json: a list of {"name", "recipe": overrides of `mini`, "resume"}; writes NAME.json beside it,
the facts of the run, or {"error"}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from train.recipe_files import load_recipe
from train.run import train


def main(path: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    for job in json.loads(path.read_text()):
        facts: dict[str, Any]
        try:
            recipe = load_recipe(job.get("base", "mini"), job["recipe"])
            facts = train(recipe, job.get("resume", False))
        except ValueError as error:  # the same on every process
            facts = {"error": str(error)}
        if rank == 0:
            (path.parent / f"{job['name']}.json").write_text(json.dumps(facts, default=str))
        gc.collect()
        if distributed.is_initialized():
            distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
