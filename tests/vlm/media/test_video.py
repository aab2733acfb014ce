"""Videos: frames, times, and the error for each bad file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.vlm.clips import HEIGHT, WIDTH, grey, shown, turn, write_clip, write_sound
from vlm.media import MediaError, iter_video, read_video, sample_indices, worker


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames at 10 per second with sound, a key frame every 5."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", sound=True, g="5", bf="2")


def test_all_frames_and_their_times(clip: Path) -> None:
    video = read_video(clip)
    assert video.frames.shape == (20, HEIGHT, WIDTH, 3)
    assert video.frames.dtype == np.uint8
    assert shown(video.frames) == list(range(20))
    assert video.timestamps.dtype == np.float64
    np.testing.assert_allclose(video.timestamps, np.arange(20) / 10, atol=1e-5)
    assert (video.fps, video.duration) == pytest.approx((10, 2), abs=1e-4)
    assert video.source == str(clip)
    assert len(video) == 20


READERS = pytest.mark.parametrize("reader", ["decord", "pyav"])


@READERS
@pytest.mark.parametrize("isolate", [True, False])
def test_sampled_frames_are_those_of_their_times(clip: Path, isolate: bool, reader: str) -> None:
    video = read_video(clip, frames=6, isolate=isolate, reader=reader)
    assert video.indices.tolist() == sample_indices(20, 6).tolist()
    assert shown(video.frames) == video.indices.tolist()
    np.testing.assert_allclose(video.timestamps, video.indices / 10, atol=1e-5)
    video = read_video(clip, fps=2.5, isolate=isolate, reader=reader)
    assert shown(video.frames) == [0, 4, 8, 12, 16]


def test_the_child_changes_no_pixel(clip: Path) -> None:
    here, there = read_video(clip, isolate=False), read_video(clip, isolate=True)
    np.testing.assert_array_equal(here.frames, there.frames)
    np.testing.assert_array_equal(here.timestamps, there.timestamps)


@READERS
@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4"), ("a.mov", "libx264")],
)
def test_containers(tmp_path: Path, name: str, codec: str, reader: str) -> None:
    video = read_video(write_clip(tmp_path / name, codec=codec), frames=4, reader=reader)
    assert shown(video.frames) == [2, 7, 12, 17]
    np.testing.assert_allclose(video.timestamps, [0.2, 0.7, 1.2, 1.7], atol=1e-3)


def test_without_usable_time_stamps_frames_are_read_in_order(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mpg", codec="mpeg2video", rate=25)
    video = read_video(path, frames=4)
    assert shown(video.frames) == [2, 7, 12, 17]
    np.testing.assert_allclose(video.timestamps, np.array([2, 7, 12, 17]) / 25)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libsvtav1"), ("a.ts", "libx264")])
def test_what_decord_refuses_pyav_reads(tmp_path: Path, name: str, codec: str) -> None:
    path = write_clip(tmp_path / name, codec=codec)
    with pytest.raises(MediaError, match="cannot read"):
        read_video(path)
    assert shown(read_video(path, frames=4, reader="pyav").frames) == [2, 7, 12, 17]


@READERS
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate_keeps_the_containers_times(
    tmp_path: Path, suffix: str, reader: str
) -> None:
    times = [i * 0.1 for i in range(10)] + [1 + i * 0.5 for i in range(10)]
    path = write_clip(tmp_path / f"vfr.{suffix}", times=times)
    np.testing.assert_allclose(read_video(path, reader=reader).timestamps, times, atol=2e-3)
    sampled = read_video(path, fps=1, reader=reader)
    np.testing.assert_allclose(sampled.timestamps, [0, 1, 2, 3, 4, 5], atol=2e-3)
    assert shown(sampled.frames) == [0, 10, 12, 14, 16, 18]


@READERS
@pytest.mark.parametrize(("degrees", "corner"), [(90, "ur"), (180, "lr"), (270, "ll")])
def test_rotation_is_applied(tmp_path: Path, degrees: int, corner: str, reader: str) -> None:
    path = write_clip(tmp_path / "turned.mp4", frames=2)
    turn(path, degrees)
    frame = read_video(path, reader=reader).frames[1]
    assert read_video(path, short_side=64, reader=reader).frames.shape[1:3] == (
        (64, 85) if degrees == 180 else (85, 64)
    )
    assert frame.shape[:2] == ((HEIGHT, WIDTH) if degrees == 180 else (WIDTH, HEIGHT))
    height, width = frame.shape[0] // 4, frame.shape[1] // 4
    corners = {"ul": frame[height, width], "ur": frame[height, -width]}
    corners |= {"ll": frame[-height, width], "lr": frame[-height, -width]}
    assert [name for name, pixel in corners.items() if pixel[0] > 200] == [corner]


@READERS
def test_short_side(clip: Path, reader: str) -> None:
    video = read_video(clip, frames=3, short_side=48, reader=reader)
    assert video.frames.shape == (3, 48, 64, 3)
    assert shown(video.frames) == video.indices.tolist()
    assert read_video(clip, frames=1, short_side=1000).frames.shape[1:3] == (HEIGHT, WIDTH)


def test_start_and_end(clip: Path, tmp_path: Path) -> None:
    assert read_video(clip, start=0.5, end=0.8).indices.tolist() == [5, 6, 7]
    assert read_video(clip, frames=2, start=1.0).indices.tolist() == [12, 17]
    assert read_video(clip, fps=5, start=1.0, end=1.6).indices.tolist() == [10, 12, 14]
    Image.new("L", (4, 4)).save(tmp_path / "1.png")
    Image.new("L", (4, 4)).save(tmp_path / "2.png")
    assert read_video(tmp_path, end=1.0).indices.tolist() == [0]  # end is not included
    with pytest.raises(MediaError, match=r"no frame in 7 to None s; it lasts 2\.000 s"):
        read_video(clip, start=7)
    with pytest.raises(ValueError, match="start=2, end=1"):
        read_video(clip, start=2, end=1)


def test_fewer_frames_than_asked(clip: Path) -> None:
    assert len(read_video(clip, frames=64)) == 20
    with pytest.raises(MediaError, match="it has 20 frames, 64 were asked for"):
        read_video(clip, frames=64, exact_count=True)


def test_adaptive_sampling_of_a_file(tmp_path: Path) -> None:
    for index in range(40):  # still, but for a burst from 20 to 29
        value = 250 if index in range(20, 30) and index % 2 else 10
        Image.new("L", (8, 8), value).save(tmp_path / f"{index}.png")
    indices = read_video(tmp_path, frames=8, sampling="adaptive").indices
    assert ((indices >= 19) & (indices <= 30)).sum() >= 5
    assert len(set(indices.tolist())) == 8


def test_chunks_are_the_whole(clip: Path) -> None:
    whole = read_video(clip)
    chunks = list(iter_video(clip, chunk=6))
    assert [len(chunk) for chunk in chunks] == [6, 6, 6, 2]
    np.testing.assert_array_equal(np.concatenate([c.frames for c in chunks]), whole.frames)
    np.testing.assert_array_equal(np.concatenate([c.timestamps for c in chunks]), whole.timestamps)
    thinned = np.concatenate([c.indices for c in iter_video(clip, chunk=2, frames=5)])
    assert thinned.tolist() == sample_indices(20, 5).tolist()


def test_chunks_are_decoded_when_asked_for(tmp_path: Path) -> None:
    for index in range(6):
        Image.new("L", (8, 8)).save(tmp_path / f"{index}.png")
    (tmp_path / "4.png").write_bytes(b"broken")
    chunks = iter_video(tmp_path, chunk=2)
    assert len(next(chunks)) == len(next(chunks)) == 2
    with pytest.raises(MediaError, match=r"4\.png"):
        next(chunks)


def test_two_videos_at_once_and_one_left_unfinished(clip: Path) -> None:
    first, second = iter_video(clip, chunk=3), iter_video(clip, chunk=3)
    assert next(first).indices.tolist() == next(second).indices.tolist() == [0, 1, 2]
    del first
    assert shown(next(second).frames) == [3, 4, 5]
    assert shown(read_video(clip, frames=2).frames) == [5, 15]


# --- pictures as video -------------------------------------------------------------------------


def test_folder_in_natural_order(tmp_path: Path) -> None:
    for index in (1, 2, 10):
        Image.new("L", (6, 4), index).save(tmp_path / f"frame{index}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / ".hidden.png").write_bytes(b"not a frame")
    video = read_video(tmp_path, folder_rate=3)
    assert video.frames[:, 0, 0, 0].tolist() == [1, 2, 10]
    np.testing.assert_allclose(video.timestamps, [0, 1 / 3, 2 / 3])
    assert (video.fps, video.duration) == (3, 1)
    assert read_video(tmp_path, short_side=2).frames.shape == (3, 2, 3, 3)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="holds no image files"):
        read_video(tmp_path)
    Image.new("L", (6, 4)).save(tmp_path / "1.png")
    Image.new("L", (4, 6)).save(tmp_path / "2.png")
    with pytest.raises(MediaError, match=r"2\.png: it is 4 x 6, not 6 x 4"):
        read_video(tmp_path)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), (grey(i),) * 3) for i in range(4)]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    path = tmp_path / f"a.{kind.lower()}"
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=[100, 200, 500, 200], **options
    )
    video = read_video(path)
    assert video.frames[:, 0, 0, 0].tolist() == [grey(i) for i in range(4)]
    np.testing.assert_allclose(video.timestamps, [0, 0.1, 0.3, 0.8])
    assert video.duration == pytest.approx(1)
    assert read_video(path, fps=2).indices.tolist() == [0, 2]


def test_a_still_image_is_one_frame_and_no_duration_is_a_tenth(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg")
    video = read_video(tmp_path / "a.jpg", frames=8)
    assert (video.timestamps.tolist(), video.duration) == ([0.0], 0.1)


def test_animation_that_claims_days_of_work(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    frames = [Image.new("L", (2, 2), i) for i in range(3)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    data = bytearray(buffer.getvalue())
    data[6:10] = b"\xff\xff\xff\xff"  # the canvas: 65535 x 65535
    (tmp_path / "bomb.gif").write_bytes(data)
    with pytest.raises(MediaError, match=r"bomb\.gif"):
        read_video(tmp_path / "bomb.gif")


# --- bad files ---------------------------------------------------------------------------------


def test_bad_files(tmp_path: Path, clip: Path) -> None:
    data = clip.read_bytes()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("<html>404</html>")
    (tmp_path / "short.mp4").write_bytes(b"GGGG")
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\nclip.mp4\n")
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {clip}\n")
    (tmp_path / "head.mp4").write_bytes(data[:40])
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    write_sound(tmp_path / "sound.mp4")
    for name, words in [
        ("none.mp4", "no such file"),
        ("empty.mp4", "the file is empty"),
        ("text.mp4", "not a video"),
        ("short.mp4", "not a video or an image"),
        ("list.mp4", "not a video"),
        ("concat.mp4", "not a video"),
        ("head.mp4", "not a video file that decord can open"),
        ("cut.mp4", "no video stream that decord can decode"),
        ("sound.mp4", "no video stream"),
    ]:
        with pytest.raises(MediaError, match=rf"{name}: .*{words}"):
            read_video(tmp_path / name)
    with pytest.raises(MediaError, match="no such file"):
        read_video("https://example.org/a.mp4")
    with pytest.raises(MediaError, match="null character"):
        read_video("a\0b.mp4")
    with pytest.raises(MediaError, match="name too long"):
        read_video("a" * 5000)
    with pytest.raises(TypeError, match="bytes"):
        read_video(data)  # type: ignore[arg-type]


@READERS
def test_damaged_frames(tmp_path: Path, reader: str) -> None:
    path = write_clip(tmp_path / "a.mkv", g="10")
    data = bytearray(path.read_bytes())
    start = data.index(b"\xa3", len(data) // 3)
    data[start : start + len(data) // 3] = bytes(len(data) // 3)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"a\.mkv"):
        read_video(path, frames=20, exact_count=True, reader=reader)


def test_damaged_frames_can_be_replaced_by_their_neighbours(tmp_path: Path) -> None:
    # decord loses the first frames of a transport stream; a file that is whole, but to it damaged.
    path = write_clip(tmp_path / "a.ts", codec="mpeg2video", rate=25)
    with pytest.raises(MediaError, match="damaged='repeat'"):
        read_video(path)
    assert read_video(path, damaged="repeat").frames.shape == (20, HEIGHT, WIDTH, 3)


def test_too_large(clip: Path) -> None:
    size = 20 * HEIGHT * WIDTH * 3
    with pytest.raises(MediaError, match=f"{size} bytes, more than max_bytes={size - 1}"):
        read_video(clip, max_bytes=size - 1)
    assert len(read_video(clip, max_bytes=size)) == 20


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"frames": 0}, ValueError, "frames=0"),
        ({"short_side": 0}, ValueError, "short_side=0"),
        ({"damaged": "no"}, ValueError, "damaged='no'"),
        ({"threads": 0}, ValueError, "threads=0"),
        ({"timeout": 0.0}, ValueError, "timeout=0.0"),
        ({"folder_rate": -1.0}, ValueError, "folder_rate=-1.0"),
        ({"reader": "cv2"}, ValueError, "reader='cv2'"),
        ({"shortside": 3}, TypeError, "shortside"),
    ],
)
def test_bad_options(
    clip: Path, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        read_video(clip, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk=0"):
        next(iter_video(clip, chunk=0))


def test_nothing_is_printed(tmp_path: Path, clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:3000])
    worker.close_idle()  # a new child inherits the captured streams
    with pytest.raises(MediaError):
        read_video(tmp_path / "cut.mp4")
    assert capfd.readouterr() == ("", "")
