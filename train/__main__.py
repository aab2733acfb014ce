"""Train a model: deepspeed --module train finetune --model ./base --data data.json ...

In one process: python -m train finetune ... --deepspeed null. Keys of the recipe can be set with
key=value (optimizer.batch=64, compress.budget=128, data.window=4096).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from train.fields import RecipeError
from train.recipe_files import load_recipe
from train.records import DataError
from vlm.progress import quiet_logs


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("recipe", help="a YAML file, or the name of a recipe in train/recipes")
    add("overrides", nargs="*", metavar="key=value", help="keys of the recipe to set")
    add("--model", help="the folder of a checkpoint, or a model name")
    add("--data", nargs="+", metavar="FILE", help="JSON or JSON-lines files of samples")
    add("--media", help="the folder of their images and videos")
    add("--output", help="a new folder, which the run writes")
    add("--validation", help="a share of the samples to hold out, or a file of samples")
    add("--deepspeed", help="zero1, zero2, zero3, zero3_offload, ..., a file, or null for none")
    add(
        "--resume",
        action="store_true",
        help="continue from the last complete checkpoint in --output",
    )
    add("--dry-run", action="store_true", help="print what would run, without loading weights")
    add("--processes", type=_count, default=1, help="with --dry-run: the number of processes")
    # Launchers pass it; the environment says the same.
    add("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return value


def main(arguments: Sequence[str] | None = None, prog: str = "python -m train") -> int:
    """Run the command line and return the exit status: 2 for a mistake in what was given."""
    options = _parser(prog).parse_intermixed_args(arguments)
    quiet_logs()
    overrides = list(options.overrides)
    for key, value in (
        ("model", options.model),
        ("data.files", options.data and f"[{', '.join(map(repr, options.data))}]"),
        ("data.media", options.media),
        ("output", options.output),
        ("data.validation", options.validation),
        ("deepspeed", options.deepspeed),
    ):
        if value is not None:
            overrides.append(f"{key}={value}")
    try:
        recipe = load_recipe(options.recipe, overrides)
        # Imported here, so that a mistake in the recipe is told before seconds of imports.
        if options.dry_run:
            from train.dryrun import dry_run

            print(dry_run(recipe, options.processes))
            return 0
        from train.run import train

        train(recipe, options.resume)
    except (RecipeError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
