"""What the golden files hold. `python -m tests.positions.golden` writes them anew.

They pin the ids of every scheme, and cos and sin of every scheme on every kind of rotary
embedding, against changes here and in transformers. Understand a difference before rewriting them.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLRotaryEmbedding,
    Qwen2_5_VLTextConfig,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VLRotaryEmbedding,
    Qwen2VLTextConfig,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextConfig,
    Qwen3VLTextRotaryEmbedding,
)

from positions import (
    PPE,
    V2PE,
    Compact,
    Image,
    MRoPE,
    PlannedRotary,
    PositionTable,
    Randomised,
    Sequential,
    Text,
    Video,
    plan,
)
from tests.positions.hosts import reduced

FOLDER = Path(__file__).parent / "golden"
SCHEMES = {
    "sequential": Sequential(),
    "v2pe": V2PE(1 / 16),
    "v2pe fine": V2PE(1 / 256),
    "v2pe third": V2PE(1 / 3),
    "v2pe random": V2PE("random", per="frame"),
    "v2pe auto": V2PE("auto", window=30),
    "mrope": MRoPE(),
    "mrope seconds": MRoPE(tokens_per_second=2),
    "mrope scaled": MRoPE(time_scale=0.25),
    "mrope canvas": MRoPE(canvas=(8, 8)),
    "compact row": Compact("row"),
    "compact all": Compact("all"),
    "compact row_col": Compact("row_col"),
    "randomised": Randomised(64),
    "randomised axes": Randomised((8, 8, 8)),
}
ROTARY = {
    "llama": (LlamaRotaryEmbedding, LlamaConfig),
    "qwen2_vl": (Qwen2VLRotaryEmbedding, Qwen2VLTextConfig),
    "qwen2_5_vl": (Qwen2_5_VLRotaryEmbedding, Qwen2_5_VLTextConfig),
    "qwen3_vl": (Qwen3VLTextRotaryEmbedding, Qwen3VLTextConfig),
}
TOKENS = (4, 6, 20)  # a merged token, a dense one, the second after the plan


def plans(name):
    """The dense plan of one layout, and the plan after a reduction with slots."""
    layout = [Text(4), Image((2, 4)), Text(1), Video((3, 2, 2), times=0.75), Text(2)]
    made = plan(layout, SCHEMES[name], generator=torch.Generator().manual_seed(7))
    reduction = {1: reduced([0, 0, 1, 2, 0, 0, 2, -1], [1, 2, 6])}
    return made, made.after(reduction, PPE(4))


def ids():
    """{scheme: {dense: [[t, h, w]], slots: [[[t, h, w]]], next: p}}."""
    out = {}
    for name in SCHEMES:
        dense, merged = plans(name)
        out[name] = {
            "dense": dense.positions[:, 0].tolist(),
            "slots": merged.positions[4:7].tolist(),
            "next": merged.next_position,
        }
    return out


def angles():
    """{family / scheme: (2, tokens, channels) cos and sin in float32}."""
    out = {}
    for family, (module, config) in ROTARY.items():
        rotary_emb = module(config())
        for name in SCHEMES:
            table = PositionTable.from_plans([plans(name)[1]])
            flat = torch.equal(table.positions, table.positions[..., :1].expand_as(table.positions))
            if family == "llama" and not flat:
                continue
            with PlannedRotary(rotary_emb).use(table):
                cos, sin = rotary_emb(torch.zeros(1, 1, 1), torch.tensor([TOKENS]))
            half = cos.shape[-1] // 2
            out[f"{family}/{name}"] = torch.stack([cos[0, :, :half], sin[0, :, :half]])
    return out


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in ids().items())
    (FOLDER / "ids.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    save_file(angles(), FOLDER / "angles.safetensors")
