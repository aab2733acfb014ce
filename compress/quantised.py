"""A quantised key/value cache with the codec of `compress.ops.octopus`; under a compression or
without."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, QuantizedLayer

from compress.ops.octopus import Encoded, Octopus


class OctopusLayer(QuantizedLayer):
    """One layer: the newest tokens as they are, older ones encoded."""

    def __init__(self, codec: Octopus, residual_length: int = 128) -> None:
        super().__init__(nbits=codec.bits, residual_length=residual_length)
        self.codec = codec

    def _quantize(self, tensor: Tensor, axis: int) -> Encoded:  # type: ignore[override]
        return self.codec.encode(tensor)

    def _dequantize(self, encoded: Encoded) -> Tensor:
        return self.codec.decode(encoded)


class OctopusCache(Cache):
    """A cache for `generate(past_key_values=...)`, of a model with full attention in all layers.

    model.generate(**inputs, past_key_values=OctopusCache(model.config, bits=3))

    Args:
        config: of the model.
        bits: of each entry, 2, 3 or 4. A vector has 16 bits beside.
        residual_length: tokens that are kept as they are before they are encoded, all at once, with
            those encoded before (as in transformers' `QuantizedCache`).

    Raises ValueError for other bits, or a model with layers of another kind.
    """

    def __init__(self, config: Any, bits: int = 4, residual_length: int = 128) -> None:
        text = config.get_text_config(decoder=True)
        kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ValueError(
                f"layers of kind {sorted(kinds)}: expected full attention in all, since tokens of "
                "the others cannot be encoded one by one"
            )
        codec = Octopus(bits)
        layers: Any = [OctopusLayer(codec, residual_length) for _ in range(text.num_hidden_layers)]
        super().__init__(layers=layers)
