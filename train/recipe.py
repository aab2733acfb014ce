"""The recipe: everything that decides what a training run does, in one checked structure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from train.fields import RecipeError

PARTS = ("tower", "projector", "language_model")


@dataclass(frozen=True)
class LearningRate:
    """The peak learning rate of each part of the model; null keeps a part frozen.

    tower: the vision tower, or all experts. projector: what maps visual features into the language
    model (the fusion of a poly-expert model). language_model: the rest, embeddings and head too.
    """

    tower: float | None = None
    projector: float | None = None
    language_model: float | None = None

    def __post_init__(self) -> None:
        for part in PARTS:
            rate = getattr(self, part)
            if rate is not None and rate <= 0:
                raise ValueError(f"{part} is {rate}: expected a positive number, or null to freeze")
        if not self.learning:
            raise ValueError("every part is frozen: give at least one of them a learning rate")

    @property
    def learning(self) -> dict[str, float]:
        """The rate of each part that learns."""
        rates = {part: getattr(self, part) for part in PARTS}
        return {part: rate for part, rate in rates.items() if rate is not None}


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters in the language model (PEFT), in the place of its own weights.

    targets: names of linear layers, or "all" for every one in the decoder layers.
    quantize: load the frozen weights in 4 bits (QLoRA); needs bitsandbytes and a GPU.
    merge: write the finished model with the adapters added in; the adapters are kept beside it.
    """

    rank: int = 128
    alpha: int = 256
    dropout: float = 0.05
    targets: tuple[str, ...] = ("all",)
    quantize: bool = False
    merge: bool = True

    def __post_init__(self) -> None:
        _need(self.rank >= 1, "rank", self.rank, "1 or more")
        _need(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        if self.quantize and self.merge:
            raise ValueError("merge: adapters cannot be merged into 4-bit weights: set it to false")


@dataclass(frozen=True)
class Data:
    """What is learned from. Forms of files: see docs/train.md.

    files: JSON or JSON-lines files. media: the folder that their paths are relative to.
    validation: a share of the samples to hold out (drawn by the seed), or a file of its own.
    template: "chat" the model's own chat template, "v1" or "plain" LLaVA-1.5's, or a Jinja file.
    window: the longest sequence in tokens, visual ones counted dense; the text of longer samples
        is cut at its end, and a sample that would lose visual tokens or all answers is bad.
    bad_share: the share of bad samples that are skipped; more stop the run.
    group: which samples form a batch: of like "length", of like length and one "modality"
        (LLaVA-1.5), or "none" at random.
    packing: lay the samples of a micro-batch one after another in few rows, none seeing another.
    pad_to_square: pad images with the mean colour instead of cropping or squeezing them.
    frames: of a video; fps: frames a second instead, at most `frames`.
    workers: processes that load samples.
    """

    files: tuple[str, ...] = ()
    media: str | None = None
    validation: float | str = 0.0
    template: str = "chat"
    window: int = 2048
    bad_share: float = 0.01
    group: Literal["modality", "length", "none"] = "modality"
    packing: bool = False
    pad_to_square: bool = False
    frames: int = 8
    fps: float | None = None
    workers: int = 4

    def __post_init__(self) -> None:
        _need(self.window >= 8, "window", self.window, "8 or more")
        _need(0 <= self.bad_share < 1, "bad_share", self.bad_share, "at least 0 and below 1")
        if isinstance(self.validation, float):
            share = self.validation
            _need(0 <= share < 1, "validation", share, "a share below 1, or a file")
        _need(self.frames >= 1, "frames", self.frames, "1 or more")
        _need(self.fps is None or self.fps > 0, "fps", self.fps, "a positive number")
        _need(self.workers >= 0, "workers", self.workers, "0 or more")


@dataclass(frozen=True)
class Optimizer:
    """AdamW and its schedule.

    batch: samples a step, over all processes. micro_batch: samples a forward in each process; the
        rest is accumulated, so that a recipe means the same on any number of processes.
    epochs, steps: how long; steps, if given, decide.
    warmup: a share of the steps below 1, or a number of steps. clip: norm of the gradient.
    """

    batch: int = 128
    micro_batch: int = 16
    epochs: float = 1.0
    steps: int | None = None
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup: float = 0.03
    weight_decay: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.999)
    epsilon: float = 1e-8
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch"):
            _need(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _need(self.epochs > 0, "epochs", self.epochs, "a positive number")
        _need(self.steps is None or self.steps >= 1, "steps", self.steps, "1 or more, or null")
        _need(self.warmup >= 0, "warmup", self.warmup, "0 or more")
        betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _need(betas, "betas", self.betas, "two numbers, at least 0 and below 1")
        _need(self.clip > 0, "clip", self.clip, "a positive number")


@dataclass(frozen=True)
class Reduction:
    """The reduction that is on in every forward (`compress.compress`).

    budget: an int is a count, a float in (0, 1] a share of the dense tokens; of several, one is
        drawn for each step, the same on every process. options: fields of the method.
    """

    method: str = "duet"
    budget: int | float | tuple[int | float, ...] = 0.25
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def budgets(self) -> tuple[int | float, ...]:
        """The budgets that are drawn from."""
        return self.budget if isinstance(self.budget, tuple) else (self.budget,)


@dataclass(frozen=True)
class Log:
    """What is written down, and when, in steps. `to`: "tensorboard", "wandb", or both.

    save: steps between checkpoints; keep: how many stay (2 at least: the newest may be cut off).
    validate: steps between validations.
    """

    every: int = 10
    to: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    save: int = 500
    keep: int = 2
    validate: int = 500

    def __post_init__(self) -> None:
        for name in ("every", "save", "validate"):
            _need(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _need(self.keep >= 2, "keep", self.keep, "2 or more")


@dataclass(frozen=True)
class Recipe:
    """One training run. The fields that name places are mostly given on the command line.

    model: a folder of a checkpoint or a model's name. output: the folder that the run writes.
    deepspeed: a file of train/deepspeed by name ("zero2", "zero3_offload", ...), a path, or null.
    positions: "original", "compact" or a scheme's short name, such as "v2pe:random" (see
        `python -m positions --help`). slots: positions that a merged token carries
        (PPE), slot_layout: how they share the rotary channels (see `positions.PPE`).
    checkpointing: gradient checkpointing. sequence_parallel: processes that share a sequence.
    """

    learning_rate: LearningRate
    model: str | None = None
    output: str | None = None
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lora: Lora | None = None
    compress: Reduction | None = None
    positions: str = "original"
    slots: int = 1
    slot_layout: Literal["contiguous", "strided"] = "contiguous"
    log: Log = field(default_factory=Log)
    deepspeed: str | None = None
    precision: Literal["bf16", "fp32"] = "bf16"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    checkpointing: bool = True
    sequence_parallel: int = 1
    seed: int = 42

    def __post_init__(self) -> None:
        if self.lora is not None and self.learning_rate.language_model is None:
            raise ValueError("lora needs learning_rate.language_model, the rate of the adapters")
        _need(self.slots >= 1, "slots", self.slots, "1 or more")
        if self.slots > 1 and self.compress is None:
            raise ValueError("slots: only merged tokens carry several positions; give `compress`")
        if self.slots > 1 and self.positions == "compact":
            raise ValueError("slots: positions 'compact' give up the places that slots keep")
        parallel = self.sequence_parallel
        _need(parallel >= 1, "sequence_parallel", parallel, "1 or more")

    def accumulation(self, world: int) -> int:
        """Forwards a step on `world` processes. Raises RecipeError if the batch does not divide."""
        ranks = world // self.sequence_parallel
        if ranks * self.sequence_parallel != world:
            raise RecipeError(
                f"sequence_parallel is {self.sequence_parallel} and there are {world} processes: "
                "expected a divisor of their number"
            )
        each = self.optimizer.micro_batch * ranks
        if self.optimizer.batch % each:
            near = max(1, round(self.optimizer.batch / each)) * each
            raise RecipeError(
                f"optimizer.batch is {self.optimizer.batch}, but {ranks} x micro_batch "
                f"{self.optimizer.micro_batch} samples go through at a time: expected a multiple "
                f"of {each}, such as {near}; or another optimizer.micro_batch"
            )
        return self.optimizer.batch // each


def _need(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}: expected {expected}")
