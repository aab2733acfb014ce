"""Images and videos from files: one error for bad ones, frames with their time stamps."""

from vlm.media.files import MediaError, inside
from vlm.media.images import read_image

__all__ = ["MediaError", "inside", "read_image"]
