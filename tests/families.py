"""`python -m tests.families` writes docs/families.md: what the tests hold of each family.

Nothing is claimed by hand: a family has a claim where the test that shows it runs on the family's
case, which is read off the test's parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.compress import test_matrix
from tests.compress.runtime import (
    test_attach,
    test_edges,
    test_later_turns,
    test_neighbours,
    test_no_text,
    test_training,
    test_turns,
    test_zero3,
)
from tests.tiny import CASES, Case
from vlm import families
from vlm.families import ADAPTERS, adapter_of
from vlm.families.refused import REFUSED

PAGE = Path(__file__).parent.parent / "docs" / "families.md"

# What a test shows, in the words of the page.
CLAIMS: tuple[tuple[str, Callable[..., None]], ...] = (
    (
        "greedy answers, prefill and decode, equal a full forward of the reduced sequence; "
        "the cache of every layer has its own length; the report is what was measured",
        test_matrix.test_prefill_and_decode_equal_a_full_forward,
    ),
    (
        "batches of different prompts and numbers of inputs, padded on either side",
        test_matrix.test_a_batch_gives_each_sample_what_it_gets_alone,
    ),
    (
        "an input that keeps all beside one that is reduced",
        test_matrix.test_an_input_that_keeps_all_beside_one_that_is_reduced,
    ),
    ("keep-all is bit-equal to the stock model", test_matrix.test_keep_all_is_bit_equal),
    ("so is what it generates", test_matrix.test_keep_all_generates_bit_equal),
    ("leaving it leaves no trace", test_matrix.test_leaves_the_model_as_it_was),
    ("beams", test_matrix.test_beams),
    ("assisted decoding (prompt lookup)", test_turns.test_prompt_lookup_equals_greedy),
    ("a second turn on the cached first", test_turns.test_a_second_turn_of_text),
    (
        "a second picture in a later turn, under M-RoPE",
        test_later_turns.test_a_second_picture_equals_one_prompt_with_both,
    ),
    ("a prompt that is nothing but an image", test_no_text.test_alone),
    ("static cache", test_turns.test_a_static_cache_equals_a_dynamic_one),
    ("quantised cache", test_turns.test_a_quantised_cache),
    ("positions by a scheme", test_attach.test_a_scheme_in_place_of_original_positions),
    (
        "loss and gradients equal those of a reduced sequence",
        test_training.test_loss_and_gradients_equal_a_reduced_sequence,
    ),
    ("bfloat16", test_edges.test_half_precision),
    ("gradient checkpointing", test_training.test_gradient_checkpointing_changes_nothing),
    (
        "ZeRO-3 with images on one process only, and of two sizes",
        test_zero3.test_zero3_with_images_on_one_process_only,
    ),
    ("LoRA in place (PEFT)", test_neighbours.test_lora_in_place_equals_lora_merged),
    ("a compiled vision encoder", test_neighbours.test_a_compiled_vision_encoder),
    (
        "weights elsewhere between calls (device map)",
        test_neighbours.test_weights_that_are_elsewhere_between_calls,
    ),
    ("a prompt without images", test_edges.test_a_prompt_with_no_image),
    (
        "placeholders that do not match are refused",
        test_edges.test_placeholders_that_do_not_match,
    ),
    ("a video of one frame", test_edges.test_a_video_of_one_frame),
    (
        "generating from right padding is refused",
        test_edges.test_generating_from_padding_is_refused,
    ),
)

# Measured; the rest of the page is derived.
TIME = """\
The quick part of `test_matrix.py` (with the four claims after the matrix) took 34 s of processor
time, on one core of two (torch 2.15, transformers 5.23)."""


# Counted once, of eleven families.
LINES_BEFORE = ("before", 11, 11, 804, 73, 559)

LAYERS = """\
## Decoders whose layers differ

**Which layers drop tokens.** Methods that reduce before the language model work on every decoder.
In-LLM methods rank tokens by attention. Linear layers have none, and sliding layers have it to the
nearest tokens alone. So a schedule keeps to layers of full attention (for methods that are scored
by the layer before, such as FastV, to the layers after those): a pair moves to the nearest such
layer, the later of two, and the budget is met with the schedule as it then is. A layer that the
user names by number is not moved: the error names the layers that can. `report()` has the counts.

**Sliding windows and chunks** are measured in positions. With the original positions a window of W
spans W tokens of the dense sequence, of which some were dropped, and so no more than W tokens that
are left. A window that counted the tokens that are left would reach further back than the model was
trained to see, and would rotate keys by distances that its local layers never saw. With
`positions="compact"` tokens lie closer together, and a window spans W tokens that are left. The
stock cache of a local layer counts tokens, so it always holds what the window needs. Attention
kernels that count tokens (FlashAttention) are refused once a shortened sequence passes the window.

**Llama 4.** Layers see chunks and rotate, or see everything, rotate nothing and scale each query by
its place. The place is that among the tokens that a layer holds, as in the stock model: the
temperature follows the number of keys that a query sees, and that is the number of those that are
left. In sequences under 8192 tokens it is 1. The stock model has no beams with pictures.

**Granite 4 Vision** adds features to empty visual tokens before several decoder layers. Methods
look at those that are added first; of later ones, a merged token gets the mean of its members'.

**Two-way attention** within an image (Gemma 3, and Gemma 4 in sliding layers) or a prompt
(PaliGemma) is kept for the tokens that are left, where the stock model is given `token_type_ids`
(Gemma 4 and Molmo 2: `mm_token_type_ids`). In Molmo 2 all images of a prompt, and the tokens around
them, are one block. It reaches past a window in Gemma 3, not in Gemma 4, as there. FlashAttention
has none. Logits that the decoder bends towards a cap (PaliGemma 2) are bent in scores, too;
transformers runs such decoders with eager attention.

**Layers that share keys** (Gemma 4 E2B, E4B): the last layers read the keys of the last one before
them of their kind. Tokens leave before those keys are made. Embeddings by layer go with their
tokens; a merged token has those of the placeholder, as all visual tokens have. Reentrant gradient
checkpointing loses the gradients of shared keys, in the stock model too.

**Linear layers** (Qwen3.5) carry a state from token to token, and short convolutions (LFM2-VL) look
back a few tokens. A state decays once a token that is left, so after a reduction the text before an
image has decayed less than in the dense sequence. Tokens stay in raster order, also with methods
that hand them on by rank (DUET as released). Rows that are left at several lengths are padded on
the left, where the state is zero. Later turns whose rows are left at several lengths are refused.
So is assisted decoding with Qwen3.5, by the stock model: its state cannot be cropped. How much less
a state decays was looked at on small decoders trained from nothing: their states keep nothing of a
word over 32 tokens, so they show nothing. It would take a published checkpoint.

**Refused**, with a sentence that names what is expected: layers of other kinds (indexed or
compressed attention); local layers under M-RoPE; videos of GLM-4.xV and Molmo 2, which have the
placeholder of images, and of ERNIE 4.5 VL, whose resampler joins two frames; videos of VideoLLaMA 3
from which its processor has dropped tokens (give it `use_token_compression=False`); Mistral 3 with
a `ministral3` decoder; LFM2-VL with a mixture of experts; Molmo 2 with a decoder as OLMo's (its
7B); a known `model_type` with a vision encoder or a decoder that is not known. Of Qwen2.5-Omni and
Qwen3-Omni the thinker is held (`model.thinker`).

**Audio** is never reduced: audio tokens count as text. A prompt with audio and no picture has
nothing to reduce, so it runs as in the stock model.

**Assisted decoding.** The tokens that an assistant proposes with the prompt rank no visual tokens.
They are told from the prompt by `logits_to_keep`, which the stock VideoLLaMA 3 and the thinkers do
not take: under a method that ranks tokens in the language model, assisted answers of these can
differ from greedy ones. The stock ERNIE 4.5 VL fails on proposed tokens.

**Not held**, and refused by their `model_type` with these words:
"""


NEIGHBOURS = """\
## Beside other tools

- **Key/value presses** (kvpress) shorten each layer's cache after prefill; a compression follows
  them where the batch has no padding, and refuses otherwise. kvpress 0.5.5 wants transformers below
  5.3, and cannot be installed beside this package; its `KnormPress` was tried without its
  dependencies, given the `cache_position` that later versions of transformers no longer pass.
- **PEFT**: wrap first, compress then. Scores are those of the layers with their adapters.
- **torch.compile**: call `compress()` first, set
  `torch._dynamo.config.skip_nnmodule_hook_guards = False`, and compile then. Without this setting
  dynamo takes the code of a layer without hooks for one with them; scores that were not seen are
  refused with a sentence. The whole model compiles with breaks in the graph. Tried with the backend
  `eager`, which traces and generates no code.
- **Device maps** (accelerate) work with weights on disk between calls; for two devices there is a
  test that needs a GPU, and has not run yet.
- **Quantised caches** work; visual inputs of a later turn, ranked in the LLM, need
  the cached keys and are refused.
"""


def parameters(test: Callable[..., None]) -> list[tuple[list[str], list[Any]]]:
    """Names and values of each parametrisation of a test."""
    parametrisations = []
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names = mark.args[0]
            names = names.replace(" ", "").split(",") if isinstance(names, str) else list(names)
            values = [getattr(value, "values", value) for value in mark.args[1]]
            parametrisations.append((names, [v if isinstance(v, tuple) else (v,) for v in values]))
    return parametrisations


def runs(test: Callable[..., None], case: Case) -> int:
    """How many times a test runs on a case."""
    count, about = 1, False
    every = parameters(test)
    named = "case" if any("case" in names for names, _ in every) else "name"
    for names, values in every:
        for at, name in enumerate(names):
            if name == named:
                values = [v for v in values if v[at] in (case, case.name)]
                about = True
        count *= len(values)
    return count if about else 0


def quick(test: Callable[..., None]) -> int:
    """How many of a test's runs on cases are in the quick suite, where one list says all."""
    (mark,) = (m for m in test.pytestmark if m.name == "parametrize")  # type: ignore[attr-defined]
    return sum(not value.marks for value in mark.args[1])


def described(case: Case) -> list[str]:
    """A row: the stock class, its inputs, the decoder layers before which tokens can leave, where
    saliency comes from, where methods merge."""
    family = adapter_of(case.model())
    layers = family.vision_layers(family.kinds[0])
    reader = family.reader(layers[family.scoring_layer(family.kinds[0], None)])
    saliency = "class token" if reader.has_class_token else "received attention"
    shown = {part[0] for layout in case.layouts for part in layout if not isinstance(part, int)}
    kinds = [*family.kinds, "video"] if family.frames_are_images else family.kinds
    inputs = "s, ".join(kind for kind in kinds if kind in shown) + "s"
    where = (
        "before the projector" if family.projector_input(family.kinds[0]) else "after the projector"
    )
    whole = set(family.layer_kinds) == {"full_attention"}
    stages = "any layer" if whole else "layers of full attention"
    model_type = f"`{family.core.config.model_type}`"
    names = [case.name, model_type, f"`{case.model_class}`", case.since]
    return [*names, inputs, stages, saliency, where]


def having(test: Callable[..., None]) -> str:
    """The families that a test runs on, in the fewest words."""
    names = [case.name for case in CASES if runs(test, case)]
    lacking = [case.name for case in CASES if case.name not in names]
    if len(lacking) <= len(names):
        return f"all but {', '.join(lacking)}" if lacking else "all"
    return ", ".join(names)


def refusals() -> list[list[str]]:
    """A row for each reason that model types are refused for."""
    by_reason: dict[str, list[str]] = {}
    for name, why in REFUSED.items():
        by_reason.setdefault(why, []).append(f"`{name}`")
    return [[", ".join(names), why] for why, names in by_reason.items()]


def lines_of_code() -> list[str]:
    """What a family costs: lines of the files of `vlm/families`."""
    folder = Path(families.__file__).parent
    lines = {
        path.stem: len(path.read_text(encoding="utf-8").splitlines())
        for path in folder.glob("*.py")
    }
    files = {adapter.__module__.rsplit(".", 1)[1] for adapter in ADAPTERS}
    own = sum(lines[name] for name in files)
    now = ["now", len(CASES), len(files), own, round(own / len(CASES)), sum(lines.values()) - own]
    head = ["", "families", "files", "lines of them", "lines a family", "lines that families share"]
    return [
        "## What a family costs",
        "",
        "Lines of `vlm/families`, without tests. The first row is of the day before hybrid",
        "decoders, sliding layers and two-way attention were held.",
        "",
        *table(head, [[str(value) for value in row] for row in (LINES_BEFORE, now)]),
        "",
    ]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def page() -> str:
    """The text of docs/families.md."""
    held = table(
        [
            "family",
            "`model_type`",
            "class",
            "transformers",
            "inputs",
            "in-LLM stages",
            "saliency",
            "features are merged",
        ],
        [described(case) for case in CASES],
    )
    claims = [[claim, having(test)] for claim, test in CLAIMS]
    matrix = [test for _, test in CLAIMS[:2]]
    size = sum(runs(test, case) for test in matrix for case in CASES)
    shapes = len(test_matrix.SHAPES)
    total = sum(runs(test, case) for _, test in CLAIMS for case in CASES)
    lines = [
        "# Families",
        "",
        "Written by `python -m tests.families` from the tests' own lists; a test compares the two.",
        "[add-a-family.md](add-a-family.md) says how to add one.",
        "",
        *held,
        "",
        "Other families are refused with a sentence that names these. Saliency is the attention",
        "that the class token gives, or that a token receives on average, in one layer. The vision",
        "encoder keeps its attention implementation ([what it costs](results.md#cost-of-scoring)).",
        "",
        LAYERS,
        *table(["model", "why"], refusals()),
        "",
        *lines_of_code(),
        "## What is tested",
        "",
        "On tiny random models of the stock classes, against a slow forward that shares no code",
        "with the hooks (`tests/reference.py`). What a family lacks is not tested, and not",
        "refused; families without videos have no test of them. Tested with transformers 5.23. The",
        "column `transformers` is the earliest version from 5.20 on with which the first row below",
        "was seen to hold (pruning before the language model and in it, sdpa).",
        "",
        *table(["what holds", "of which families"], claims),
        "",
        f"The matrix is {len(CASES)} families x {shapes} shapes of methods "
        f"({', '.join(test_matrix.SHAPES)}) x the attention backends of each",
        f"({', '.join(test_matrix.ATTENTION)}) x alone and in padded batches: {size} tests, of "
        f"which {sum(quick(test) for test in matrix)} are in the",
        f"quick suite. With the rows below them, {total} tests.",
        TIME,
        "",
        NEIGHBOURS,
    ]
    return "\n".join(lines)


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
