"""Ulysses sequence parallelism: a group of processes shares each sequence (arXiv 2309.14509).

DeepSpeed provides the attention (`UlyssesSPAttentionHF`: with two all-to-alls, each process has all
tokens of some heads). accelerate's ParallelismConfig sets up the groups. The rest of DeepSpeed's
integration splits the *batch* along dimension 1 and replaces attention in all modules, which only
suits language models. Here every process of a group reads the same batch and encodes its images.
The sequence is split where it enters the language model, after a reduction:

    language model (pre)     embeddings and positions: this process continues with its own part
    attention                DeepSpeed's, in decoder layers only, with the whole sequence's mask
    decoder layers (pre)     joined where a compression reads or shortens the sequence
    final norm (pre)         joined where hidden states are expanded to the dense length
    loss                     of the process's own logits; the sum over the group is reported

Sequences that do not divide evenly are padded at the end, without labels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from compress import Compression
from vlm.families import adapter_of


class SequenceParallel:
    """Attached to a model in training. Forwards in evaluation mode are unchanged.

    group: the processes that share a sequence. attend: transformers' attention function, which
    DeepSpeed's integration replaced for all modules. compression: the one attached to the model, if
    any; it must be attached before. `remove()` detaches.
    """

    def __init__(
        self, model: Any, group: Any, attend: Any, compression: Compression | None = None
    ) -> None:
        self.group, self.size = group, distributed.get_world_size(group)
        self.rank = distributed.get_rank(group)
        self.compression = compression
        self.adapter = adapter_of(model)
        self._model, self._active, self._length = model, False, 0
        self._attention: dict[int, Any] = {}
        decoder = self.adapter.language_model
        self._config = decoder.config
        self._handles = [decoder.register_forward_pre_hook(self._enter, with_kwargs=True)]
        for number, layer in enumerate(self.adapter.layers):
            self._both(layer, self._join(number), self._part(number), with_kwargs=True)
        self._both(self.adapter.norm, self._join_last, self._part_last)
        self._loss, model.loss_function = model.loss_function, self._own_loss
        self._name = str(self._config._attn_implementation)
        self._stock = attend
        self._own = {id(layer.self_attn) for layer in self.adapter.layers}
        ALL_ATTENTION_FUNCTIONS[self._name] = self._attend

    def _both(self, module: nn.Module, first: Any, last: Any, **options: Any) -> None:
        """Add hooks before and after those of a compression on a module."""
        add = module.register_forward_pre_hook
        self._handles += [add(first, prepend=True, **options), add(last, **options)]

    def remove(self) -> None:
        """Detach, and restore the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._model.loss_function = self._loss
        ALL_ATTENTION_FUNCTIONS[self._name] = self._stock

    # ------------------------------------------------------------ parts of a sequence

    def _padded(self, x: Tensor, dim: int, value: float = 0) -> Tensor:
        more = -x.shape[dim] % self.size
        pads = [0, 0] * (x.ndim - 1 - dim % x.ndim) + [0, more]
        return F.pad(x, pads, value=value) if more else x

    def _own_part(self, x: Tensor, dim: int = 1) -> Tensor:
        """The part of a sequence along `dim` that belongs to this process."""
        return self._padded(x, dim).chunk(self.size, dim)[self.rank].contiguous()

    def _whole(self, x: Tensor) -> Tensor:
        """Join the parts (B, L, ...) of all processes to (B, S, ...), without padding."""
        joined: Tensor = _Joined.apply(x, self.group, self.rank)
        return joined[:, : self._length]

    def _places(self, places: Tensor) -> Tensor:
        """This process's part of position ids (..., S). Padding counts from 0, as in samples."""
        more = torch.arange(-places.shape[-1] % self.size, device=places.device)
        padded = torch.cat([places, more.expand(*places.shape[:-1], -1).to(places)], dim=-1)
        return padded.chunk(self.size, -1)[self.rank].contiguous()

    def _mask(self, mask: Any) -> Tensor | None:
        """The mask of the whole sequence with padding, which only its own rows attend to."""
        if mask is None:
            return None
        more = -mask.shape[-1] % self.size
        if mask.ndim == 2:
            return self._padded(mask, 1)
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        mask = F.pad(mask, [0, more, 0, more], value=hidden)
        if more:
            mask[..., -more:, -more:] = True if mask.dtype == torch.bool else 0
        return mask

    # ------------------------------------------------------------ hooks

    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        self._active = module.training
        if not self._active:
            return None
        if kwargs.get(self.adapter.injects[1]) is not None:
            raise ValueError(
                "sequence_parallel: this model adds visual features inside its decoder (DeepStack) "
                "to sequences that are whole there: expected sequence_parallel 1"
            )
        embeds: Tensor = kwargs["inputs_embeds"]
        self._length = embeds.shape[1]
        places = kwargs.get("position_ids")
        if places is None:
            places = torch.arange(self._length, device=embeds.device).expand(len(embeds), -1)
        text = places[0] if places.ndim == 3 else places
        if places.ndim == 3 and len(places) != 4:
            text = torch.arange(self._length, device=embeds.device)[None]
        given = kwargs.get("attention_mask")
        self._given = self._mask(
            create_causal_mask(
                self._config, embeds, given, None, None if given is not None else text
            )
        )
        self._text = self._places(text.expand(len(embeds), -1))
        # The model passes a mask of four dimensions on, and makes none of its own.
        self._mark = embeds.new_zeros(1, 1, 1, 1)
        return args, kwargs | {
            "inputs_embeds": self._own_part(embeds),
            "position_ids": self._places(places),
            "attention_mask": self._mark,
        }

    def _looked_at(self, number: int) -> bool:
        return self.compression is not None and self.compression.reads_whole_sequence(number)

    def _join(self, number: int) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not (self._active and self._looked_at(number)):
                return None
            with torch.no_grad():
                rotary = tuple(self._whole(part) for part in kwargs["position_embeddings"])
            return (self._whole(args[0]), *args[1:]), kwargs | {"position_embeddings": rotary}

        return before

    def _part(self, number: int) -> Any:
        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self._active:
                return None
            hidden, (cos, sin) = args[0], kwargs["position_embeddings"]
            if self._looked_at(number):
                self._length = hidden.shape[1]
                hidden = self._own_part(hidden)
            if cos.shape[1] != hidden.shape[1]:
                cos, sin = self._own_part(cos), self._own_part(sin)
            if self._looked_at(number) and kwargs["attention_mask"] is not self._mark:
                # The mask of a compression, which is valid from this layer on.
                self._given = self._mask(kwargs["attention_mask"])
                self._text = self._places(kwargs["position_ids"].expand(len(hidden), -1))
            changed = {"position_embeddings": (cos, sin), "position_ids": self._text}
            return (hidden, *args[1:]), kwargs | changed | {"attention_mask": self._given}

        return after

    def _join_last(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        self._back = self.compression is not None and self.compression.shortened
        if not (self._active and self._back):
            return None
        return (self._whole(args[0]), *args[1:])

    def _part_last(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not (self._active and self._back):
            return None
        return (self._own_part(args[0]), *args[1:])

    # ------------------------------------------------------------ attention and loss

    def _attend(self, module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self._active or id(module) not in self._own:
            return self._stock(module, query, *args, **kwargs)
        return self._ulysses(len(query))(module, query, *args, **kwargs)

    def _ulysses(self, rows: int) -> Any:
        """DeepSpeed's attention for batches of this number of rows."""
        if rows not in self._attention:
            from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

            config, first = self._config, self.adapter.layers[0].self_attn
            self._attention[rows] = UlyssesSPAttentionHF(
                attn=self._stock,
                batch_size=rows,
                attn_head_count=config.num_attention_heads,
                attn_head_size=first.head_dim,
                kv_head_count=config.num_key_value_heads,
                num_hidden_layers=config.num_hidden_layers,
                process_group=self.group,
                seq_length_is_variable=True,
            )
        return self._attention[rows]

    def _own_loss(self, logits: Tensor, labels: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of all tokens, with the gradient of the tokens of this process.

        DeepSpeed adds up the gradients of a group and divides by the number of groups.
        """
        if not self._active:
            return self._loss(logits, labels, *args, **kwargs)
        following = F.pad(labels, (0, 1), value=-100)[:, 1:]
        count = kwargs.get("num_items_in_batch")
        if count is None:
            count = (following != -100).sum()
        own_labels = (
            self._padded(following, 1, -100).chunk(self.size, 1)[self.rank].to(logits.device)
        )
        own = F.cross_entropy(
            logits.float().flatten(0, 1), own_labels.flatten(), ignore_index=-100, reduction="sum"
        )
        total = own.detach().clone()
        distributed.all_reduce(total, group=self.group)
        return (own + (total - own.detach())) / count


class _Joined(torch.autograd.Function):
    """The parts of all processes, any of which each process may use."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any, rank: int) -> Tensor:
        ctx.group, ctx.rank, ctx.length = group, rank, x.shape[1]
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = grads[0].contiguous()
        distributed.all_reduce(grad, group=ctx.group)
        return grad.narrow(1, ctx.rank * ctx.length, ctx.length), None, None
