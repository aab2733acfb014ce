"""What a tiny model of a family needs for the tests that all families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

PAD, IMAGE_TOKEN, VIDEO_TOKEN = 0, 5, 4
FIRST_WORD, WORDS = 6, 64

View = tuple[tuple[int, int, int], list[int]]


@dataclass(frozen=True)
class Sample:
    """A prompt: ids (S,), and what it shows, as (kind, variant, seed) in order."""

    ids: Tensor
    shown: tuple[tuple[str, str, int], ...] = ()


def text(hidden: int = 32, depth: int = 4, heads: int = 4, **more: Any) -> dict[str, Any]:
    """A text configuration with grouped heads, and weights wide enough to tell tokens apart."""
    common = {
        "vocab_size": WORDS,
        "hidden_size": hidden,
        "intermediate_size": 48,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return common | more


def clip(image_size: int) -> transformers.CLIPVisionConfig:
    """A CLIP vision encoder of three layers, with patches of 4 x 4 pixels."""
    return transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=4,
    )


class Case:
    """One family. Subclasses are written from the family's real checkpoints and processor.

    variants: names of the shapes of input that are tried, by kind. layouts: prompts, as lengths of
    text and (kind, variant) in turn. projector, vision: paths of modules below the core. pools:
    rows of the encoder that the projector makes one token of, None where that is done before it.
    has_cls: whether the encoder has a class token; cls_last: whether it comes last. feature_layer:
    the vision layer whose output the projector gets, or the last that sees whole images. frames: of
    a family whose processor gives videos as images, the frames of each variant. experts: names of
    several encoders, whose `vision` paths these are (then `by_token` and `positions` say what the
    reference cannot read off the stock model). quick: whether the quick suite has the family,
    quick_in_matrix: whether it has its diagonal of the matrix alone; near kin of others are in the
    slow one. stages: the decoder layers that the matrix drops tokens at. last_stage: the last that
    can be, where it is not the last of all. two_way: whose tokens attend to each other in both
    directions, "image", "prompt", or "sliding" for images in sliding layers alone. recurrent:
    whether decoder layers carry a state from token to token. since: the earliest transformers from
    5.20 on that the family was seen to work with. attention: the implementations that the stock
    decoder has, of those of the matrix. by_timm: whether the vision encoder is one of timm.
    first_mark: the first id that is no word, but a mark that the stock model reads where there are
    images.
    """

    name: ClassVar[str]
    model_class: ClassVar[str]
    projector: ClassVar[str] = "multi_modal_projector"
    vision: ClassVar[tuple[str, ...]] = ("vision_tower",)
    pools: ClassVar[int | None] = 1
    has_cls: ClassVar[bool] = False
    cls_last: ClassVar[bool] = False
    experts: ClassVar[tuple[str, ...]] = ()
    feature_layer: ClassVar[int] = -1
    frames: ClassVar[Mapping[str, int]] = {}
    budget: ClassVar[int] = 12
    quick: ClassVar[bool] = True
    quick_in_matrix: ClassVar[bool] = False
    stages: ClassVar[tuple[int, ...]] = (1, 2, 3)
    last_stage: ClassVar[int] = 0
    since: ClassVar[str] = "5.20"
    two_way: ClassVar[str] = ""
    marks: ClassVar[tuple[int, ...]] = ()
    recurrent: ClassVar[bool] = False
    attention: ClassVar[tuple[str, ...]] = ("sdpa", "eager")
    first_mark: ClassVar[int] = WORDS
    by_timm: ClassVar[bool] = False
    layouts: ClassVar[Sequence[Sequence[Any]]] = (
        (3, ("image", "a"), 7),
        (5, ("image", "b"), 2),
        (1, ("image", "a"), 4, ("image", "b"), 6),
    )

    def config(self, depth: int) -> Any:
        raise NotImplementedError

    def tokens(self, kind: str, variant: str) -> Tensor:
        """Ids that the processor puts where an input is shown."""
        raise NotImplementedError

    def media(self, kind: str, shown: Sequence[tuple[str, int]]) -> dict[str, Tensor]:
        """Model inputs that bring inputs of a kind, as (variant, seed)."""
        raise NotImplementedError

    def rows_of_media(self, kind: str, shown: Sequence[Any]) -> dict[str, Tensor]:
        """The same for a batch: what each sample shows."""
        return self.media(kind, [visual_input for row in shown for visual_input in row])

    def views(self, kind: str, variant: str) -> list[View]:
        """Grid of each view of an input, and which of its tokens lie in the grid."""
        raise NotImplementedError

    def core(self, model: Any) -> Any:
        """What has the encoding functions."""
        return model.model

    def features(self, output: Any) -> Any:
        """The features of all inputs in the output of an encoding function."""
        return output.pooler_output

    def deepstack(self, output: Any) -> list[Any]:
        """What is added to visual tokens after each of the first layers, in the same output."""
        return getattr(output, "deepstack_features", None) or []

    def entering(self, model: Any, features: Tensor) -> Tensor:
        """Features (N, D) as they stand in the prompt's embeddings."""
        return features

    def extra(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Model inputs that follow from the ids."""
        return {}

    def words(self, model: Any, ids: Tensor) -> Tensor:
        """(S, D): embeddings of the text of a prompt with visual inputs."""
        embeddings: Tensor = model.get_input_embeddings()(ids)
        return embeddings

    def as_words(self, ids: Tensor) -> Tensor:
        """Ids that the model has said, as it takes them for words."""
        return ids

    def keeps_cls(self, kind: str) -> bool:
        """Whether class tokens go on to the projector."""
        return False

    def by_token(self, kind: str, variant: str, values: Sequence[Tensor]) -> Tensor:
        """Values of the tokens of each expert's views, (views, tokens, C), by token, (N, C)."""
        raise NotImplementedError

    def positions(self, sample: Sample) -> tuple[Tensor, int]:
        """(S, A) positions of a sample alone, and the next one."""
        raise NotImplementedError

    def build(self, config: Any) -> Any:
        """The model, with random weights."""
        return getattr(transformers, self.model_class)(config)

    def merges_before(self, kind: str) -> bool:
        """Whether inputs of a kind can be merged before the projector."""
        return self.pools == 1

    def pooled_as(self, kind: str, values: Tensor) -> Tensor:
        """`pooled` of the rows of inputs of a kind."""
        return self.pooled(values)

    def pooled(self, values: Tensor) -> Tensor:
        """Values (R,) of all rows of the encoder, as the projector's output would hold them."""
        return values.reshape(-1, self.pools or 1).mean(1)

    # -- the same for all families -----------------------------------------------------

    def model(self, attention: str = "sdpa", depth: int = 4) -> Any:
        """The model; the same object each time, for tests that leave it as it was."""
        return _model(self, attention, depth)

    def fresh(self, attention: str = "sdpa", depth: int = 4) -> Any:
        """A model of one's own, the same weights each time."""
        config = self.config(depth)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = self.build(config).eval()
            # Stock initialisation leaves attention almost flat: every choice would be a tie.
            with torch.no_grad():
                for path in (*self.vision, self.projector):
                    for parameter in self.core(model).get_submodule(path).parameters():
                        if parameter.ndim > 1:
                            parameter.normal_(0, 0.25)
                for name, parameter in self.core(model).named_parameters():
                    if name == "image_newline":
                        parameter.normal_(0, 0.5)
        model.set_attn_implementation(attention if attention in self.attention else "eager")
        model.generation_config.eos_token_id = None
        return model

    def laid_out(self, layout: Sequence[Any]) -> list[Any]:
        """A layout with each video that comes as images in its place: a time stamp and an image a
        frame."""
        parts: list[Any] = []
        for part in layout:
            if not isinstance(part, int) and part[0] == "video" and part[1] in self.frames:
                parts += [2, ("image", "frame")] * self.frames[part[1]]
            else:
                parts.append(part)
        return parts

    def sample(self, layout: Sequence[Any], seed: int = 0) -> Sample:
        """A prompt of text runs (their lengths) and inputs (kind, variant)."""
        draw = torch.Generator().manual_seed(seed)
        parts, shown = [], []
        for number, part in enumerate(self.laid_out(layout)):
            if isinstance(part, int):
                parts.append(torch.randint(FIRST_WORD, self.first_mark, (part,), generator=draw))
            else:
                parts.append(self.tokens(*part))
                shown.append((*part, 100 * seed + number))
        return Sample(torch.cat(parts), tuple(shown))

    def samples(self) -> list[Sample]:
        return [self.sample(layout, seed) for seed, layout in enumerate(self.layouts)]

    def inputs(self, samples: Sequence[Sample], side: str = "left") -> dict[str, Tensor]:
        """A padded batch as the processor makes it."""
        width = max(len(sample.ids) for sample in samples)
        ids = torch.full((len(samples), width), PAD)
        mask = torch.zeros(len(samples), width, dtype=torch.int64)
        for row, sample in enumerate(samples):
            ids_of = sample.ids
            at = slice(width - len(ids_of), None) if side == "left" else slice(0, len(ids_of))
            ids[row, at], mask[row, at] = ids_of, 1
        out = {"input_ids": ids, "attention_mask": mask}
        for kind in ("image", "video"):
            shown = [[s[1:] for s in sample.shown if s[0] == kind] for sample in samples]
            if any(shown):
                out |= self.rows_of_media(kind, shown)
        return out | self.extra(out)


@cache
def _model(case: Case, attention: str, depth: int) -> Any:
    return case.fresh(attention, depth)


def noise(*shape: int, seed: int) -> Tensor:
    """Standard normal, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def token_types(ids: Tensor) -> Tensor:
    """mm_token_type_ids: 1 at images, 2 at videos."""
    return (ids == IMAGE_TOKEN).long() + 2 * (ids == VIDEO_TOKEN).long()
