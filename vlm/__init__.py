"""Vision-language models: the embedded model, adapters of stock models, and reading of media."""

from vlm.load import load
from vlm.media import MediaError, Video, read_image, read_video
from vlm.shadowed import warn_of_shadowed

__all__ = ["MediaError", "Video", "load", "read_image", "read_video"]

warn_of_shadowed()
