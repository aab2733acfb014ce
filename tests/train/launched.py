"""What the launcher's tests start: a run, or several in the same processes, as starting costs most.

deepspeed --num_accelerators 2 --module tests.train.launched mini model=... (as `train`)
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

import deepspeed
import torch
from deepspeed.runtime.sequence_parallel import parallel_state_sp
from torch import distributed

from train.__main__ import main as command
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
        parallel_state_sp._SEQUENCE_PARALLEL_GROUP = None  # DeepSpeed makes them once a process
        parallel_state_sp._SEQUENCE_DATA_PARALLEL_GROUP = None
        gc.collect()
        if distributed.is_initialized():
            distributed.barrier()


if __name__ == "__main__":
    # Two processes of a test need no shared-memory kernels, which take minutes to compile.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if sys.argv[-1].endswith("jobs.json"):
        main(Path(sys.argv[-1]))
    else:
        sys.exit(command(sys.argv[1:]))
