"""The recipe: everything that decides what a training run does, in one checked structure.

The parts are frozen pydantic dataclasses: types, ranges and names are checked when one is made.
`train.fields.build` turns pydantic's errors into sentences that name the key of the recipe.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, Strict, StrictBool, StrictInt
from pydantic.dataclasses import dataclass

from compress.adaptive import Budget as AnyBudget
from compress.adaptive import Shared
from compress.defaults import BUDGET, METHOD
from compress.parse import parse_any_budget
from train.fields import RecipeError, as_number, as_tuple

PARTS = ("vision_encoder", "projector", "language_model", "scorer")

_CHECKED = ConfigDict(extra="forbid")

Number = Annotated[float, Strict(), BeforeValidator(as_number), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False)]
Count = Annotated[StrictInt, Field(ge=1)]
Budget = Count | Annotated[Number, Field(gt=0, le=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]


@dataclass(frozen=True, config=_CHECKED)
class LearningRate:
    """The peak learning rate of each part of the model. A part without one stays frozen.

    Args:
        vision_encoder: the vision encoder, or all experts of a poly-expert model.
        projector: what maps visual features into the language model, or the fusion of experts.
        language_model: everything else, with the embeddings and the output head.
        scorer: a scorer of visual tokens, which learns alone. See `ScorerSettings`.

    Raises:
        ValueError: a rate that is not positive, no rate at all, or another beside the scorer's.
    """

    vision_encoder: Positive | None = None
    projector: Positive | None = None
    language_model: Positive | None = None
    scorer: Positive | None = None

    def __post_init__(self) -> None:
        if not self.learning:
            raise ValueError("every part is frozen: give at least one of them a learning rate")
        if self.scorer is not None and len(self.learning) > 1:
            raise ValueError("a scorer learns with all else frozen: give no other part a rate")

    @property
    def learning(self) -> dict[str, float]:
        """The rate of each part that learns."""
        rates = {part: getattr(self, part) for part in PARTS}
        return {part: rate for part, rate in rates.items() if rate is not None}


@dataclass(frozen=True, config=_CHECKED)
class Lora:
    """Low-rank adapters in the language model (PEFT), trained in place of its own weights.

    Args:
        rank, alpha, dropout: as in `peft.LoraConfig`.
        targets: names of linear layers, or "all" for every linear layer of the decoder.
        quantize: load the frozen weights in 4 bits (QLoRA). Needs bitsandbytes and a GPU.
        merge: add the adapters to the weights of the saved model. The adapters are saved as well.
    """

    rank: Count = 128
    alpha: StrictInt = 256
    dropout: Share = 0.05
    targets: Names = ("all",)
    quantize: StrictBool = False
    merge: StrictBool = True

    def __post_init__(self) -> None:
        if self.quantize and self.merge:
            raise ValueError("merge: adapters cannot be merged into 4-bit weights: set it to false")


@dataclass(frozen=True, config=_CHECKED)
class Data:
    """The training data. docs/train.md describes the forms of files.

    Args:
        files: JSON or JSON-lines files.
        media: the folder that the paths of images and videos are relative to.
        validation: the share of the samples to hold out (drawn with the seed), or a file.
        template: "chat" for the model's own chat template, "v1" or "plain" for those of LLaVA-1.5,
            or a Jinja file.
        window: the longest sequence in tokens, counting visual tokens before reduction. Longer
            samples lose text at their end. A sample that would lose visual tokens or every answer
            is bad.
        bad_share: the share of bad samples that may be skipped. More of them stop the run.
        group: how samples are put into batches: samples of similar "length", of similar length and
            one "modality" (as LLaVA-1.5 does), or "none" for a random order.
        packing: put several samples of a micro-batch into one row. They do not see each other.
        pad_to_square: pad images to a square with the mean colour before the processor sees them.
        frames: the number of frames of a video.
        fps: frames a second instead, at most `frames` of them.
        workers: the number of processes that load samples.
    """

    files: Names = ()
    media: str | None = None
    validation: Share | str = 0.0
    template: str = "chat"
    window: Annotated[StrictInt, Field(ge=8)] = 2048
    bad_share: Share = 0.01
    group: Literal["modality", "length", "none"] = "modality"
    packing: StrictBool = False
    pad_to_square: StrictBool = False
    frames: Count = 8
    fps: Positive | None = None
    workers: Annotated[StrictInt, Field(ge=0)] = 4


@dataclass(frozen=True, config=_CHECKED)
class Optimizer:
    """AdamW and its learning rate schedule.

    Args:
        batch: samples a step, over all processes.
        micro_batch: samples a forward in each process. Gradients are accumulated up to `batch`, so
            that a recipe means the same on any number of processes.
        epochs: the length of the run, unless `steps` is given.
        steps: the length of the run in optimizer steps.
        warmup: a share of the steps if below 1, else a number of steps.
        clip: the largest norm of the gradient.
    """

    batch: Count = 128
    micro_batch: Count = 16
    epochs: Positive = 1.0
    steps: Count | None = None
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup: NotNegative = 0.03
    weight_decay: Number = 0.0
    betas: Annotated[tuple[Share, ...], Field(min_length=2, max_length=2)] = (0.9, 0.999)
    epsilon: Number = 1e-8
    clip: Positive = 1.0


@dataclass(frozen=True, config=_CHECKED)
class CompressSettings:
    """The reduction that is applied in every forward (see `compress.compress`).

    Args:
        method: the name of a method.
        budget: an int is a number of tokens, a float in (0, 1] a share of the dense tokens, and
            "coverage:0.95" as many of each image as cover that share of its weight
            (`compress.Coverage`). Of several budgets, one is drawn for each step, the same on every
            process.
        options: fields of the method.
        schedule: "own" for the method's schedule in the language model, or "probed" (see
            `compress.probe`); the probe is that of the weights before training.
        calibrate: "own" for what the method asks for, "none", or terms of `compress.Calibration`
            such as "size+first_layer".
    """

    method: str = METHOD
    budget: Budget | str | tuple[Budget | str, ...] = BUDGET
    options: dict[str, Any] = field(default_factory=dict)
    schedule: Literal["own", "probed"] = "own"
    calibrate: str = "own"

    def __post_init__(self) -> None:
        if any(isinstance(budget, Shared) for budget in self.budgets):
            raise ValueError(
                "budget: what 'shared' gives an image depends on the others of its micro-batch, "
                "and so on the number of processes: expected a number, or 'coverage:0.95'"
            )

    @property
    def budgets(self) -> tuple[AnyBudget, ...]:
        """The budgets to draw from. Raises ValueError for a text that is none."""
        given = self.budget if isinstance(self.budget, tuple) else (self.budget,)
        return tuple(parse_any_budget(one) if isinstance(one, str) else one for one in given)


@dataclass(frozen=True, config=_CHECKED)
class ScorerSettings:
    """A scorer of visual tokens after the projector, trained in VisionSelector's way (arXiv
    2510.16598) and saved alone, for `compress(model, "learned", scorer=output)`.

    Args:
        hidden: the width of its layer.
        budgets: shares of the dense tokens. One is drawn for each step: one scorer serves all.
        temperature: of the selection at the first step, and at the last that is soft.
        hard: the share of the steps, at the end, with the hard selection.
    """

    hidden: Count = 256
    budgets: Annotated[tuple[Share, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (
        0.5,
        1 / 3,
        2 / 9,
        1 / 9,
        1 / 18,
    )
    temperature: Annotated[tuple[Positive, ...], Field(min_length=2, max_length=2)] = (1.0, 0.05)
    hard: Share = 0.2

    def __post_init__(self) -> None:
        if min(self.budgets) <= 0:
            raise ValueError(f"budgets are {self.budgets}: expected shares above 0")


@dataclass(frozen=True, config=_CHECKED)
class Log:
    """What is logged and saved, and how often, in steps.

    Args:
        every: steps between log lines.
        to: "tensorboard", "wandb", or both.
        save: steps between checkpoints.
        keep: the number of checkpoints to keep. At least 2, as the newest one may be incomplete.
        validate: steps between validations.
    """

    every: Count = 10
    to: Annotated[tuple[Literal["tensorboard", "wandb"], ...], BeforeValidator(as_tuple)] = (
        "tensorboard",
    )
    save: Count = 500
    keep: Annotated[StrictInt, Field(ge=2)] = 2
    validate: Count = 500


@dataclass(frozen=True, config=_CHECKED)
class Recipe:
    """One training run. Paths are usually given on the command line.

    Args:
        learning_rate: the rate of each part that learns.
        model: the folder of a checkpoint, or a model name.
        output: the folder that the run writes.
        data, optimizer, log: see `Data`, `Optimizer`, `Log`.
        lora: train adapters in place of the language model's weights. See `Lora`.
        compress: reduce visual tokens during training. See `CompressSettings`.
        scorer: train a scorer of visual tokens. See `ScorerSettings`.
        positions: "original", "compact" or the short name of a scheme, such as "v2pe:random" (see
            `python -m positions --help`).
        slots, slot_layout: the number of positions that a merged token carries, and how they share
            the rotary channels (see `positions.PPE`).
        deepspeed: the name of a file in train/deepspeed ("zero2", "zero3_offload", ...), a path, or
            null for none.
        checkpointing: recompute activations in the backward pass.
        sequence_parallel: the number of processes that share a sequence.

    Raises:
        ValueError: settings that contradict each other.
    """

    learning_rate: LearningRate
    model: str | None = None
    output: str | None = None
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lora: Lora | None = None
    compress: CompressSettings | None = None
    scorer: ScorerSettings | None = None
    positions: str = "original"
    slots: Count = 1
    slot_layout: Literal["contiguous", "strided"] = "contiguous"
    log: Log = field(default_factory=Log)
    deepspeed: str | None = None
    precision: Literal["bf16", "fp32"] = "bf16"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    checkpointing: StrictBool = True
    sequence_parallel: Count = 1
    seed: StrictInt = 42

    def __post_init__(self) -> None:
        if self.lora is not None and self.learning_rate.language_model is None:
            raise ValueError("lora needs learning_rate.language_model, the rate of the adapters")
        if (self.scorer is None) != (self.learning_rate.scorer is None):
            raise ValueError("scorer and learning_rate.scorer go together: give both or none")
        if self.scorer is not None:
            self._check_scorer()
        if self.slots > 1 and self.compress is None:
            raise ValueError("slots: only merged tokens carry several positions; give `compress`")
        if self.slots > 1 and self.positions == "compact":
            raise ValueError("slots: positions 'compact' give up the places that slots keep")

    def _check_scorer(self) -> None:
        named = {"compress": self.compress, "lora": self.lora}
        given = [name for name, value in named.items() if value is not None]
        given += ["positions"] * (self.positions != "original")
        given += ["data.packing"] * self.data.packing
        given += ["sequence_parallel"] * (self.sequence_parallel > 1)
        if given:
            raise ValueError(f"a scorer is trained on the model as it is: leave out {given[0]}")
        if self.attention == "flash_attention_2":
            raise ValueError("a scorer learns through a mask of numbers: set attention to sdpa")

    def accumulation(self, world: int) -> int:
        """The number of forwards a step on `world` processes.

        Raises RecipeError if the batch does not divide evenly.
        """
        ranks = world // self.sequence_parallel
        if ranks * self.sequence_parallel != world:
            raise RecipeError(
                f"sequence_parallel is {self.sequence_parallel} and there are {world} processes: "
                "expected a divisor of their number"
            )
        at_once = self.optimizer.micro_batch * ranks
        if self.optimizer.batch % at_once:
            multiple = max(1, round(self.optimizer.batch / at_once)) * at_once
            raise RecipeError(
                f"optimizer.batch is {self.optimizer.batch}, but {ranks} x micro_batch "
                f"{self.optimizer.micro_batch} samples go through at a time: expected a multiple "
                f"of {at_once}, such as {multiple}; or another optimizer.micro_batch"
            )
        return self.optimizer.batch // at_once
