"""transformers' Trainer with the sample order, parameter groups and statistics of a recipe."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import Trainer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from train.adapters import is_adapted, load_beside, merge, merged_state, save_beside
from train.checkpoints import is_universal, mark_whole
from train.dataset import Fault
from train.encode import IGNORED
from train.parallel import SequenceParallel
from train.parts import groups, optimizer_groups
from train.recipe import Recipe
from train.records import DataError
from train.reduction import Reducer
from train.sampler import GroupedSampler
from train.watch import Watch
from vlm.families import adapter_of

AN_IMAGE = 576  # tokens, to estimate lengths; these only decide the order of samples


class RecipeTrainer(Trainer):
    """Runs a recipe. `faults` and `totals` cover the run so far, over all processes."""

    def __init__(self, recipe: Recipe, reducer: Reducer | None, base: Any, **kwargs: Any) -> None:
        self.recipe, self.reducer = recipe, reducer
        self.faults: list[Fault] = []
        self.totals: dict[str, float] = {}
        self.watch = Watch()
        self._new_faults: list[Fault] = []
        self._last_log: float | None = None
        self._rates: dict[str, float] = {}
        self.parallel: SequenceParallel | None = None
        self._base, self._alone = base, False
        self._attend = ALL_ATTENTION_FUNCTIONS.get(recipe.attention)
        super().__init__(**kwargs)
        adapter = adapter_of(base)
        self._depth = len(adapter.layers)
        encoder: Any = adapter.vision_encoder
        # Of several experts it is a container, which is never called.
        for module in encoder.values() if isinstance(encoder, nn.ModuleDict) else [encoder]:
            self.watch.time_module("vision", module)
        self.watch.time_module("language model", adapter.language_model)

    # ---------------------------------------------------------------- data

    def _get_train_sampler(self, train_dataset: Any = None) -> GroupedSampler:
        samples: Any = train_dataset or self.train_dataset
        data, scanned = self.recipe.data, samples.scan
        by_length = data.group != "none"
        self._sampler = GroupedSampler(
            len(samples),
            self.recipe.optimizer.batch,
            self.recipe.seed,
            scanned.tokens(AN_IMAGE, AN_IMAGE * data.frames) if by_length else None,
            (scanned.media.sum(1) > 0) if data.group == "modality" else None,
        )
        return self._sampler

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # accelerate's set_epoch does not reach a sampler inside two nested batch samplers.
        self._sampler.epoch = kwargs["epoch"]
        super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self.watch.start("data")
        samples = super().get_batch_samples(*args, **kwargs)
        self.watch.stop("data")
        return samples

    # ---------------------------------------------------------------- sequence parallelism

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        if self.recipe.sequence_parallel > 1:
            # The processes of a group read the same batches and share their sequences.
            shard: Any = loader.batch_sampler
            shard.num_processes //= self.recipe.sequence_parallel
            shard.process_index //= self.recipe.sequence_parallel
            self.accelerator.deepspeed_ulysses_dl_adapter = self._share
        return loader

    def _share(self, loader: Any, model: Any) -> Any:
        """Replaces DeepSpeed's adapter, once its process groups exist (see train.parallel)."""
        from deepspeed.utils import groups

        compression = None if self.reducer is None else self.reducer.compression
        group = groups._get_sequence_parallel_group()
        self.parallel = SequenceParallel(self._base, group, self._attend, compression)
        self.model_accepts_loss_kwargs = True
        return loader

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        # Trainer assumes that each process of a group reads batches of its own.
        self._alone = True
        values = super().set_initial_training_values(args, dataloader)
        self._alone = False
        return values

    def get_sp_size(self) -> int:
        return 1 if self._alone else super().get_sp_size()

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if self.parallel is None or not self.model.training:  # type: ignore[union-attr]
            return super().compute_loss(model, inputs, *args, **kwargs)
        outputs = model(**inputs, num_items_in_batch=kwargs.get("num_items_in_batch"))
        # DeepSpeed averages gradients over groups; the loss is already a mean over all tokens.
        return outputs.loss * (self.args.world_size // self.recipe.sequence_parallel)

    # ---------------------------------------------------------------- steps

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            settings = self.recipe.optimizer
            options: dict[str, Any] = {"betas": settings.betas, "eps": settings.epsilon}
            learner: Any = self.model
            parameters = optimizer_groups(learner, self.recipe)
            deepspeed: Any = self.args.deepspeed or {}
            zero = deepspeed.get("zero_optimization", {})
            if zero.get("offload_optimizer", {}).get("device", "none") != "none":
                from deepspeed.ops.adam import DeepSpeedCPUAdam

                self.optimizer = DeepSpeedCPUAdam(parameters, **options)
            else:
                self.optimizer = torch.optim.AdamW(parameters, **options)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        self._account(inputs.pop("about"))
        optimizer: Any = self.optimizer
        self._rates = {f"lr_{group['name']}": group["lr"] for group in optimizer.param_groups}
        self._last_log = self._last_log or time.perf_counter()
        # A cache is useless here, and with one the attention mask ignores packed samples.
        inputs["use_cache"] = False
        self.watch.start("step")
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.watch.stop("step")
        self._account_reduction()
        return loss

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self._account(inputs.pop("about"), count=False)
        inputs = self._prepare_inputs(inputs | {"use_cache": False})
        with torch.no_grad(), self.compute_loss_context_manager():
            total = model(**inputs, num_items_in_batch=1).loss.detach().float()
        count = (inputs["labels"][:, 1:] != IGNORED).sum()
        self._validation += torch.stack([total, count.to(total)]).to(self._validation)
        return total / count.clamp(min=1), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's, but the loss is the mean over all tokens, however they are batched."""
        self._validation = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        output = super().evaluation_loop(*args, **kwargs)
        total, count = self.accelerator.reduce(self._validation, "sum").tolist()
        return output._replace(
            metrics=(output.metrics or {}) | {"eval_loss": total / max(count, 1)}
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self.reducer is not None:
            self.reducer.settle()
        self._alone = True  # each process validates its own samples
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self._alone = False

    def _account(self, about: dict[str, Any], count: bool = True) -> None:
        self._new_faults += about["faults"]
        if count:
            for name in ("samples", "text", "visual"):
                self.watch.add(name, about[name])
            self.watch.add("cut", len(about["cut"]))

    def _account_reduction(self) -> None:
        if self.reducer is None:
            return
        report = self.reducer.compression.report()
        self.watch.add("visual dense", report.dense.layers[0])
        self.watch.add("visual kept", sum(report.reduced.layers) / self._depth)
        for part in (report.reduced.reduce, report.reduced.plan):
            self.watch.seconds["reduce"] += (part or 0.0) / 1e3

    # ---------------------------------------------------------------- logs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.perf_counter()
            logs |= self._figures(now - (self._last_log or now)) | self._rates
            self._last_log = now
        self._collect_faults()
        super().log(logs, start_time)

    def _figures(self, wall: float) -> dict[str, float]:
        """Tokens a second, visual tokens and shares of time since the last log."""
        seconds, counts = self.watch.take()
        names = sorted({"samples", "text", "visual", "cut", "visual dense", "visual kept"})
        local = torch.tensor([counts.get(name, 0.0) for name in names], device=self.args.device)
        summed = self.accelerator.reduce(local, "sum") / self.recipe.sequence_parallel
        total = dict(zip(names, summed.tolist(), strict=True))
        for name, amount in total.items():
            self.totals[name] = self.totals.get(name, 0.0) + amount
        reduce = seconds.get("reduce", 0.0)
        decoder = max(0.0, seconds.get("language model", 0.0) - reduce)
        forward = seconds.get("vision", 0.0) + decoder + reduce
        shares = {
            "data": seconds.get("data", 0.0),
            "vision": seconds.get("vision", 0.0),
            "reduce": reduce,
            "language_model": decoder,
            "backward": max(0.0, seconds.get("step", 0.0) - forward),
        }
        figures = {f"time_{name}": round(spent / wall, 4) for name, spent in shares.items()}
        figures["tokens_per_second"] = round((total["text"] + total["visual"]) / wall, 1)
        figures["samples_per_second"] = round(total["samples"] / wall, 2)
        if total["visual dense"]:
            figures["visual_kept"] = round(total["visual kept"] / total["visual dense"], 4)
        figures["visual_tokens"] = total["visual"]
        return figures

    def _collect_faults(self) -> None:
        """Gather the faults of all processes. Too many raise DataError on all of them."""
        count = torch.tensor([len(self._new_faults)], device=self.args.device)
        if not int(self.accelerator.reduce(count, "sum")):
            return
        gathered = gather_object(self._new_faults)
        self._new_faults = []
        self.faults = list(dict.fromkeys([*self.faults, *gathered]))
        size, allowed = len(self.train_dataset), self.recipe.data.bad_share  # type: ignore[arg-type]
        if len(self.faults) > allowed * size:
            first = "\n".join(f"  {fault.where}: {fault.reason}" for fault in self.faults[:5])
            raise DataError(
                f"{len(self.faults)} of {size} samples turned out bad so far, and data.bad_share "
                f"allows {allowed:g}:\n{first}"
            )

    # ---------------------------------------------------------------- checkpoints

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        super()._save(output_dir, state_dict)
        if is_adapted(self.model) and self.args.should_save:
            learner: Any = self.model
            save_beside(learner, Path(output_dir or str(self.args.output_dir)), state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        learner: Any = self.model
        if is_adapted(learner):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            load_beside(learner, Path(resume_from_checkpoint))
            return
        # Trainer loads the names in the file as they are and ignores those that from_pretrained
        # would rename: for a LLaVA, all of them.
        saved = type(learner).from_pretrained(resume_from_checkpoint, dtype=learner.dtype)
        learner.load_state_dict(saved.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not is_universal(Path(checkpoint)):
            return
        # From a universal checkpoint, DeepSpeed 0.19 gives every group the settings of the first,
        # and under ZeRO-3 one shared tensor of the step count, which each group then increments.
        optimizer: Any = self.optimizer
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        for state in optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()
        scheduler: Any = self.lr_scheduler
        learner: Any = self.model
        own = groups(learner, self.recipe)
        rates = scheduler.get_last_lr()
        for settings, group, rate in zip(optimizer.param_groups, own, rates, strict=True):
            settings.update(lr=rate, weight_decay=group.decay, name=group.part)

    def save_whole(self, folder: Path) -> None:
        """Save the finished model for `from_pretrained`, with adapters merged if asked for."""
        learner: Any = self.model
        if not is_adapted(learner):
            self.save_model(str(folder))
            return
        self.save_model(str(folder / "adapter"))
        if self.recipe.lora is None or not self.recipe.lora.merge:
            return
        merge(learner)
        state = self.accelerator.get_state_dict(self.deepspeed or learner)
        if self.args.should_save:
            learner.get_base_model().save_pretrained(folder, state_dict=merged_state(state))
            processor: Any = self.processing_class
            processor.save_pretrained(folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            mark_whole(folder, {"world": self.args.world_size, "step": self.state.global_step})
