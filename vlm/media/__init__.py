"""Images and videos from files: one error for bad ones, frames with their time stamps."""

from vlm.media.files import MediaError, inside
from vlm.media.images import png, read_image
from vlm.media.sampling import sample_indices
from vlm.media.video import Opening, Video, iter_video, read_video

__all__ = [
    "MediaError",
    "Opening",
    "Video",
    "inside",
    "iter_video",
    "png",
    "read_image",
    "read_video",
    "sample_indices",
]
