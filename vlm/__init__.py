"""Vision-language models: the embedded one, how stock ones are built, and the media they see."""

from vlm.load import load
from vlm.media import MediaError, Video, read_image, read_video
from vlm.shadowed import warn_of_shadowed

__all__ = ["MediaError", "Video", "load", "read_image", "read_video"]

warn_of_shadowed()
