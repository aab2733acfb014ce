"""A training run, from a checked recipe to a saved model."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DeepSpeedSequenceParallelConfig
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PrinterCallback,
    TrainingArguments,
    set_seed,
)
from transformers.core_model_loading import WeightRenaming

from compress.methods.scorer import save_scorer
from train.checkpoints import RECIPE, drop_cut_off
from train.collate import Collator, blank_input
from train.dataset import Samples, Scan
from train.encode import Encoder
from train.fields import RecipeError
from train.parts import add_adapters, freeze, groups, sizes
from train.preflight import Flight, check
from train.recipe import Recipe
from train.recipe_files import as_dict, to_yaml
from train.reduction import Reducer, wanted
from train.scoring import SoftSelection
from train.seen import Steps, draw_loss, write_report
from train.trainer import RecipeTrainer
from vlm.families import adapter_of


def train(recipe: Recipe, resume: bool = False) -> dict[str, Any]:
    """Run a recipe: load the model, train it, save it, write a report.

    Under a launcher (deepspeed, torchrun) every process calls this function. The output folder gets
    the model and its processor (for `from_pretrained`), checkpoints, recipe.yaml,
    train_report.json, loss.png and the files of TensorBoard.

    Args:
        recipe: the recipe.
        resume: continue from the last complete checkpoint in the output folder, if there is one.

    Returns:
        The facts of train_report.json.

    Raises:
        RecipeError, DataError: something in the recipe or the data is wrong. Raised before the
            model is loaded, except for media that turn out to be damaged.
    """
    flight = check(recipe, resume)
    arguments = training_arguments(recipe, flight)
    if recipe.deepspeed is not None:
        import deepspeed

        deepspeed.init_distributed()  # on CPU, transformers would do this after loading only
    output = Path(str(recipe.output))
    _begin(recipe, output, flight)
    model, processor = load(recipe)
    scoring = None
    if recipe.scorer is not None:
        set_seed(recipe.seed)
        scoring = SoftSelection(model, recipe.scorer, recipe.seed)
    freeze(model, recipe)
    base, cached = model, getattr(model.config, "use_cache", None)
    set_seed(recipe.seed)  # for the adapters: loading draws a different amount under ZeRO-3
    if recipe.lora is not None:
        model = add_adapters(model, recipe.lora)
        freeze(model, recipe)
    # Processes that share sequences must draw the same numbers.
    stream = flight.rank // recipe.sequence_parallel
    reducer = Reducer(base, recipe, stream) if wanted(recipe) else None
    encoder = make_encoder(recipe, processor)
    trainer = RecipeTrainer(
        recipe,
        reducer,
        base,
        model=model,
        args=arguments,
        data_collator=make_collator(recipe, base, processor, encoder, flight.training),
        train_dataset=Samples(flight.training, encoder, strict=recipe.data.bad_share == 0),
        eval_dataset=Samples(flight.validation, encoder) if flight.validation else None,
        processing_class=processor,
        callbacks=[Steps(reducer), *_boards(recipe, output, flight.rank), *filter(None, [scoring])],
    )
    trainer.remove_callback(PrinterCallback)
    if flight.rank == 0:
        print(summary(recipe, flight, base if recipe.lora is None else model), flush=True)
    began = time.time()
    done = trainer.train(str(flight.checkpoint) if flight.checkpoint else None)
    facts = _facts(recipe, flight, trainer, done, time.time() - began)
    if trainer.parallel is not None:
        trainer.parallel.remove()
    if reducer is not None:
        reducer.compression.remove()
    # Trainer turns the cache off in the configuration; the saved model should generate with it.
    if cached is None:
        del base.config.use_cache
    else:
        base.config.use_cache = cached
    if scoring is None:
        trainer.save_whole(output)
    else:
        scoring.remove()
        if flight.rank == 0:
            save_scorer(scoring.scorer, output)
    if flight.rank == 0:
        _write(output, trainer, facts)
    return facts


def _begin(recipe: Recipe, output: Path, flight: Flight) -> None:
    """Prepare the output folder, once all processes have made their checks."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    if flight.rank == 0:
        output.mkdir(parents=True, exist_ok=True)
        for path in drop_cut_off(output):
            print(f"{path} is incomplete: removed", file=sys.stderr)
        if flight.checkpoint is None:
            (output / RECIPE).write_text(to_yaml(recipe), encoding="utf-8")
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def training_arguments(recipe: Recipe, flight: Flight) -> TrainingArguments:
    """The recipe as `TrainingArguments`. Starts communication between processes."""
    optimizer, log, data = recipe.optimizer, recipe.log, recipe.data
    known = TrainingArguments.__dataclass_fields__
    prefix = "activation" if "activation_checkpointing" in known else "gradient"
    options: dict[str, Any] = {
        f"{prefix}_checkpointing": recipe.checkpointing,
        f"{prefix}_checkpointing_kwargs": {"use_reentrant": False},
    }
    if recipe.sequence_parallel > 1:
        handler = DeepSpeedSequenceParallelConfig(
            sp_seq_length_is_variable=True, sp_attn_implementation=recipe.attention
        )
        options["parallelism_config"] = ParallelismConfig(
            sp_size=recipe.sequence_parallel, sp_backend="deepspeed", sp_handler=handler
        )
    return TrainingArguments(
        output_dir=str(recipe.output),
        per_device_train_batch_size=optimizer.micro_batch,
        per_device_eval_batch_size=optimizer.micro_batch,
        gradient_accumulation_steps=flight.accumulation,
        num_train_epochs=optimizer.epochs,
        max_steps=optimizer.steps or -1,
        learning_rate=max(recipe.learning_rate.learning.values()),
        lr_scheduler_type=optimizer.schedule,
        warmup_steps=optimizer.warmup,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.epsilon,
        max_grad_norm=optimizer.clip,
        bf16=recipe.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        deepspeed=flight.deepspeed,
        logging_steps=log.every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=["wandb"] if "wandb" in log.to else [],
        save_strategy="steps",
        save_steps=log.save,
        save_total_limit=log.keep,
        eval_strategy="steps" if flight.validation else "no",
        eval_steps=log.validate,
        prediction_loss_only=True,
        label_names=["labels"],
        dataloader_num_workers=data.workers,
        dataloader_persistent_workers=data.workers > 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=recipe.seed,
        data_seed=recipe.seed,
        **options,
    )


def load(recipe: Recipe) -> tuple[Any, Any]:
    """Load the model and its processor. Under ZeRO-3 weights are sharded as they are read."""
    options: dict[str, Any] = {}
    # Trained weights stay in float32 without DeepSpeed, which keeps a float32 master copy.
    half = recipe.precision == "bf16" and (recipe.deepspeed or recipe.lora)
    if recipe.lora is not None and recipe.lora.quantize:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    name = str(recipe.model)
    model = AutoModelForImageTextToText.from_pretrained(
        name,
        dtype=torch.bfloat16 if half else torch.float32,
        attn_implementation=recipe.attention,
        use_safetensors=True,
        **options,
    )
    _forget_unused_names(model)
    processor = AutoProcessor.from_pretrained(name)
    processor.tokenizer.padding_side = "right"
    return model, processor


def _forget_unused_names(model: Any) -> None:
    """Have the model saved under the names that it was loaded with.

    transformers 5.23 records the renamings that a checkpoint needed. Under ZeRO-3 it records all
    that it knows, and a LLaVA would be saved as language_model.model.model.layers...
    """
    conversions = getattr(model, "_weight_conversions", None) or []
    used = [
        conversion
        for conversion in conversions
        if not isinstance(conversion, WeightRenaming) or conversion.was_used()
    ]
    if len(used) != len(conversions):
        model._weight_conversions = used


def make_encoder(recipe: Recipe, processor: Any) -> Encoder:
    """The encoder of a recipe's data."""
    data = recipe.data
    if data.pad_to_square and not hasattr(processor, "image_processor"):
        raise RecipeError(
            f"data.pad_to_square is true, but {type(processor).__name__} resizes images for each "
            "expert by itself: set it to false"
        )
    media = None if data.media is None else Path(data.media)
    return Encoder(
        processor, media, data.template, data.window, data.frames, data.fps, data.pad_to_square
    )


def make_collator(
    recipe: Recipe, model: nn.Module, processor: Any, encoder: Encoder, scanned: Scan
) -> Collator:
    """The collator of a recipe's data and a model."""
    kinds = scanned.kinds
    if not encoder.sees_video and "video" in kinds:
        kinds = kinds - {"video"} | {"image"}
    accepts = frozenset(inspect.signature(model.forward).parameters)
    return Collator(
        pad=processor.tokenizer.pad_token_id or 0,
        blanks={kind: blank_input(encoder.blank(kind)) for kind in sorted(kinds)},
        accepts=accepts,
        packing=recipe.data.packing,
        window=recipe.data.window,
        one_row=recipe.attention == "flash_attention_2",
        places=rope_of(model) if recipe.data.packing else None,
        token_types=adapter_of(model).token_types,
    )


def rope_of(model: Any) -> Callable[[dict[str, Any]], Tensor] | None:
    """For a model with M-RoPE, the function from a sample's features to its (3, S) positions.

    None for other models. Raises RecipeError for a model that cannot keep packed samples apart, or
    plans the positions of whole rows.
    """
    adapter = adapter_of(model)
    core = adapter.core
    if not adapter.packs:
        raise RecipeError(
            f"data.packing: samples of family {adapter.name!r} in one row would not be kept apart: "
            "set it to false"
        )
    if hasattr(core, "fusion") and core.fusion.config.scheme:
        raise RecipeError(
            "data.packing: this model plans the positions of whole rows, without the limits of "
            "packed samples: set it to false"
        )
    if not hasattr(core, "get_rope_index"):
        return None

    def places(sample: dict[str, Any]) -> Tensor:
        ids, types = (sample[name][None] for name in ("input_ids", "mm_token_type_ids"))
        mask = torch.ones_like(ids, dtype=torch.bool)
        placed = adapter.chunk_positions(ids, mask, sample | {"mm_token_type_ids": types})
        if placed is None:  # text alone
            return torch.arange(ids.shape[1]).expand(3, -1)
        return placed[0].T.long()

    return places


def _boards(recipe: Recipe, output: Path, rank: int) -> list[Any]:
    if "tensorboard" not in recipe.log.to or rank:
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(output / "tensorboard")))]


def summary(recipe: Recipe, flight: Flight, model: nn.Module) -> str:
    """A few lines about the run that starts."""
    validation = flight.validation
    lines = [
        f"{len(flight.training)} samples"
        + (f", {len(validation)} held out" if validation else "")
        + (f", {len(flight.training.faults)} bad ones skipped" if flight.training.faults else "")
        + f"; {flight.world} processes x {recipe.optimizer.micro_batch} samples x "
        f"{flight.accumulation} forwards = {recipe.optimizer.batch} samples a step"
    ]
    for part, (whole, learning) in sizes(model).items():
        lines.append(f"  {part:<16}{whole:>16,} parameters, {learning:>16,} trained")
    for group in groups(model, recipe):
        lines.append(
            f"  group {group.part:<16}{group.count:>16,} at {group.rate:g}, decay {group.decay:g}"
        )
    return "\n".join(lines)


def _facts(
    recipe: Recipe, flight: Flight, trainer: RecipeTrainer, done: Any, seconds: float
) -> dict[str, Any]:
    history = trainer.state.log_history
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {
        "recipe": as_dict(recipe),
        "processes": flight.world,
        "samples": len(flight.training),
        "held_out": len(flight.validation) if flight.validation else 0,
        "steps": trainer.state.global_step,
        "resumed_from": str(flight.checkpoint) if flight.checkpoint else None,
        "seconds": round(seconds, 2),
        "loss": [[row["step"], row["loss"]] for row in history if "loss" in row],
        "validation_loss": [
            [row["step"], row["eval_loss"]] for row in history if "eval_loss" in row
        ],
        "totals": trainer.totals,
        "time": _mean_shares(history),
        "peak_gpu_bytes": memory,
        "skipped": [asdict(fault) for fault in [*flight.training.faults, *trainer.faults]],
    }


def _mean_shares(history: list[dict[str, Any]]) -> dict[str, float]:
    rows = [row for row in history if "loss" in row]
    names = [name for name in (rows[-1] if rows else {}) if name.startswith("time_")]
    return {
        name.removeprefix("time_"): round(sum(row.get(name, 0) for row in rows) / len(rows), 4)
        for name in names
    }


def _write(output: Path, trainer: RecipeTrainer, facts: dict[str, Any]) -> None:
    write_report(output / "train_report.json", facts)
    curves = {"loss": facts["loss"]}
    if facts["validation_loss"]:
        curves["validation"] = facts["validation_loss"]
    draw_loss(output / "loss.png", curves)
    saved = "the model" if trainer.recipe.scorer is None else "the scorer"
    print(f"saved to {output}: {saved}, train_report.json, loss.png", flush=True)
