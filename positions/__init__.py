"""Positions of the tokens of a multimodal sequence, before and after a reduction.

from positions import Image, PlannedRotary, PositionTable, Text, plan

p = plan([Text(30), Image(grid=(24, 24)), Text(20)])
p.positions, p.next_position
q = p.after({1: reduction})
with PlannedRotary(model.model.language_model.rotary_emb).use(PositionTable.from_plans([q])):
    ...
"""

from positions.channels import ChannelTable
from positions.checks import check
from positions.errors import PositionError
from positions.held import Held, compact
from positions.infinite import LMInfinite
from positions.keys import move_cache, rerotate
from positions.layout import Image, Scheme, Segment, Text, Video, Visual, layout_of
from positions.plan import Plan, from_positions, plan
from positions.policies import StreamPositions, stream_positions
from positions.rotary import PlannedRotary
from positions.schemes import V2PE, Compact, MRoPE, Randomised, Sequential, Traversal
from positions.slots import PPE
from positions.table import PositionTable

__all__ = [
    "PPE",
    "V2PE",
    "ChannelTable",
    "Compact",
    "Held",
    "Image",
    "LMInfinite",
    "MRoPE",
    "Plan",
    "PlannedRotary",
    "PositionError",
    "PositionTable",
    "Randomised",
    "Scheme",
    "Segment",
    "Sequential",
    "StreamPositions",
    "Text",
    "Traversal",
    "Video",
    "Visual",
    "check",
    "compact",
    "from_positions",
    "layout_of",
    "move_cache",
    "plan",
    "rerotate",
    "stream_positions",
]
