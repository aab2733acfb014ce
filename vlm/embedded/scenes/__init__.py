"""Synthetic scenes and clips: pictures, videos, questions and answers for the embedded model.

A scene holds 5 to 8 coloured shapes, a tiny dot and a sign with two characters, each in its own
slot of a 4 x 4 arrangement, over a photograph or a shaded ground. A clip is a video of 4 such
pictures with 2 shapes each. Everything is determined by a seed. The splits are disjoint by
construction: the colour-shape pairs of `held_out_pair`, the sign texts of `held_out_text`, and some
photographs and fonts are never drawn for training.
"""

from vlm.embedded.scenes.drawing import draw, draw_clip
from vlm.embedded.scenes.labels import FIELDS, cell_labels, clip_labels
from vlm.embedded.scenes.questions import (
    CATEGORIES,
    LETTERS,
    Question,
    candidates,
    caption,
    clip_caption,
    clip_questions,
    multiple_choice,
    options,
    questions,
)
from vlm.embedded.scenes.scene import (
    CHARACTERS,
    COLOURS,
    FRAMES,
    IMAGE_SIZE,
    SHAPES,
    SLOTS,
    SPLITS,
    Clip,
    Dot,
    Item,
    Scene,
    Sign,
    Split,
    held_out_pair,
    held_out_text,
    make_clip,
    make_scene,
)

__all__ = [
    "CATEGORIES",
    "CHARACTERS",
    "COLOURS",
    "FIELDS",
    "FRAMES",
    "IMAGE_SIZE",
    "LETTERS",
    "SHAPES",
    "SLOTS",
    "SPLITS",
    "Clip",
    "Dot",
    "Item",
    "Question",
    "Scene",
    "Sign",
    "Split",
    "candidates",
    "caption",
    "cell_labels",
    "clip_caption",
    "clip_labels",
    "clip_questions",
    "draw",
    "draw_clip",
    "held_out_pair",
    "held_out_text",
    "make_clip",
    "make_scene",
    "multiple_choice",
    "options",
    "questions",
]
