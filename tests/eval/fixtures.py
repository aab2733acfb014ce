"""Small files in the official formats of the benchmarks, with generated content only.

Each writer makes a folder's worth of what its benchmark is distributed as, with every column and
the odd cases that the real files have, and returns what the loader is given.
"""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

from PIL import Image

from eval.benchmarks.mme import COGNITION, PERCEPTION
from eval.samples import Benchmark, Scored
from tests.vlm.clips import write_clip
from vlm.embedded.scenes import draw, make_scene

SHORT = "\nAnswer the question using a single word or phrase."
HEAD = "index question hint A B C D answer category image source l2-category comment split".split()  # noqa: SIM905


def picture(seed: int) -> Image.Image:
    return draw(make_scene(seed, "val"))


def encoded(seed: int, folder: Path) -> str:
    path = folder / f"{seed}.png"
    picture(seed).save(path)
    return base64.b64encode(path.read_bytes()).decode()


def mmbench_rows(folder: Path, split: str = "dev", chinese: bool = False) -> list[dict[str, str]]:
    """Four questions: four options with a hint, three, two, and one that shares a picture."""
    ask = "图中有什么" if chinese else 'Which one is "shown", {a} or b?'  # quotes and braces
    texts = ["一个圆", "正方形", "星", "None"] if chinese else ["circle", "square", "star", "None"]
    rows = []
    for number, (count, answer) in enumerate([(4, "B"), (3, "C"), (2, "A"), (4, "D")]):
        row = dict.fromkeys(HEAD, "")
        row |= dict(zip("ABCD", texts[:count], strict=False))
        row |= {"index": str(241 + number), "question": f"{ask} ({number})", "split": split}
        row |= {"category": f"kind {number % 2}", "l2-category": "perception", "source": "drawn"}
        row |= {"hint": "Look\nclosely." if number == 0 else "", "answer": answer}
        row["image"] = encoded(number, folder) if number < 3 else "241"
        if split == "test":
            row["answer"] = ""
        rows.append(row)
    return rows


def rolls(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Each row with its turned ones, as the files with CircularEval have them."""
    rolled = []
    for row in rows:
        texts = [row[letter] for letter in "ABCD" if row[letter]]
        for k in range(len(texts)):
            turned = dict(zip("ABCD", texts[k:] + texts[:k], strict=False))
            at = "ABCD"[("ABCD".index(row["answer"]) - k) % len(texts)] if row["answer"] else ""
            index = str(int(row["index"]) + k * 1_000_000)
            image = row["image"] if k == 0 else row["index"]
            rolled.append({**row, **turned, "answer": at, "index": index, "image": image})
    return rolled


def write_tsv(path: Path, rows: list[dict[str, Any]], head: list[str] = HEAD) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, head, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def videomme_rows() -> list[dict[str, Any]]:
    rows = []
    kinds = [("short", "Knowledge"), ("medium", "Life Record"), ("long", "Multilingual")]
    for video, (duration, domain) in enumerate(kinds, 1):
        for number in (1, 2, 3):
            rows.append(
                {
                    "video_id": f"{video:03d}",
                    "duration": duration,
                    "domain": domain,
                    "sub_category": f"sub {video}",
                    "url": "none",
                    "videoID": f"drawn-{video}",
                    "question_id": f"{video:03d}-{number}",
                    "task_type": f"task {number}",
                    "question": f"What is the grey of frame {number}?",
                    "options": ["A. Black.", "B. Grey.", "C. Light grey.", "D. White."],
                    "answer": "ABCD"[number],
                }
            )
    return rows


SRT = """1
00:00:00,000 --> 00:00:00,550
<font color="white" size=".72c">The first words</font>

2
00:00:00,550 --> 00:00:00,750
never seen

3
00:00:01,000 --> 00:00:03,000
Two lines
of words
"""


def videomme_media(folder: Path, frames: int = 20) -> Path:
    """A clip of two seconds for each video, in the official layout."""
    for name in ("video", "subtitle"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for video in (1, 2, 3):
        write_clip(folder / "video" / f"drawn-{video}.mp4", frames=frames)
        (folder / "subtitle" / f"drawn-{video}.srt").write_text(SRT)
    return folder


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def official_videos(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The form of the official result file: videos with their questions."""
    videos: dict[str, dict[str, Any]] = {}
    for row in rows:
        head = {k: row[k] for k in ("video_id", "duration", "domain", "sub_category", "videoID")}
        video = videos.setdefault(row["video_id"], {**head, "questions": []})
        names = ("question_id", "task_type", "question", "options", "answer")
        video["questions"].append({name: row[name] for name in names})
    return list(videos.values())


def images(folder: Path, names: list[str]) -> Path:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(folder / name)
    return folder


def textvqa(folder: Path, answers: bool = True) -> tuple[Path, Path, Path]:
    """Questions, images, Rosetta's OCR tokens."""
    rows = []
    for number in range(3):
        row: dict[str, Any] = {
            "question_id": 34602 + number,
            "image_id": f"0054c91397f2fe05-{number}",
            "question": "what does the Sign say?",
            "image_classes": ["Sign"],
        }
        if answers:
            row["answers"] = ["K7"] * 6 + ["k 7"] * 2 + ["unanswerable", "nokia"]
        rows.append(row)
    media = images(folder / "train_images", [f"{row['image_id']}.jpg" for row in rows])
    data, ocr = folder / "TextVQA_0.5.1_val.json", folder / "TextVQA_Rosetta_OCR_v0.2_val.json"
    data.write_text(json.dumps({"dataset_type": "val", "data": rows}))
    tokens = [{"image_id": row["image_id"], "ocr_tokens": ["K7", "EXIT"]} for row in rows]
    ocr.write_text(json.dumps({"data": tokens}))
    return data, media, ocr


def pope(folder: Path) -> tuple[Path, Path]:
    """The three files, two pictures and four questions each."""
    names = ["COCO_val2014_000000310196.jpg", "COCO_val2014_000000210789.jpg"]
    for kind in ("random", "popular", "adversarial"):
        lines = [
            {
                "question_id": number + 1,
                "image": names[number // 2],
                "text": f"Is there a {'star' if number % 2 else 'ring'} in the image?",
                "label": "no" if number % 2 else "yes",
            }
            for number in range(4)
        ]
        path = folder / f"coco_pope_{kind}.json"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder, images(folder / "val2014", names)


def gqa(folder: Path) -> tuple[Path, Path]:
    rows = {
        f"2010{number}": {
            "imageId": f"n{number // 2}",
            "question": "Is the star left of the ring?",
            "answer": ["yes", "left", "T-shirt"][number],
            "fullAnswer": "Yes, it is.",
            "isBalanced": True,
            "types": {"structural": "verify", "semantic": ["rel", "attr", "obj"][number]},
        }
        for number in range(3)
    }
    path = folder / "testdev_balanced_questions.json"
    path.write_text(json.dumps(rows))
    return path, images(folder / "images", ["n0.jpg", "n1.jpg"])


def mme(folder: Path) -> Path:
    """All 14 tasks, two pictures each, in both of the layouts that the release has."""
    for task in [*PERCEPTION, *COGNITION]:
        nested = task in ("artwork", "celebrity", "landmark", "posters", "scene")
        texts = folder / task / ("questions_answers_YN" if nested else "")
        shown = folder / task / ("images" if nested else "")
        texts.mkdir(parents=True)
        images(shown, ["0001.png", "0002.jpg"])
        for stem in ("0001", "0002"):
            (texts / f"{stem}.txt").write_text(
                "Is there a star? Please answer yes or no.\tYes\n"
                "Is there a ring? Please answer yes or no.\tNo\n"
            )
    return folder


def scienceqa(folder: Path) -> tuple[Path, Path]:
    """Two test questions with pictures, one without, one of another split."""
    base = {"choices": ["circle", "ring", "star"], "answer": 1, "hint": "", "image": "image.png"}
    base |= {"question": "Which one is it?", "task": "closed choice", "grade": "grade 4"}
    base |= {"subject": "natural science", "split": "test"}
    rows = {
        "4": base | {"hint": "It is round."},
        "5": base | {"choices": ["yes", "no"], "answer": 0, "subject": "social science"},
        "6": base | {"image": None},
        "7": base | {"split": "train"},
    }
    path = folder / "problems.json"
    path.write_text(json.dumps(rows))
    return path, images(folder / "test", ["4/image.png", "5/image.png"])


def scored(benchmark: Benchmark, texts: dict[str, str], default: str = "") -> list[Scored]:
    """All questions, answered with `texts` by key, elsewhere with `default` or rightly."""
    loaded = benchmark.load()
    assert not loaded.problems
    answers = [(s, texts.get(s.key, default or s.answer)) for s in loaded.samples]
    return [Scored(s, text, benchmark.score(s, text)) for s, text in answers]


def change_first(path: Path, change: dict[str, object]) -> None:
    """Change the first question of a JSON or JSON-lines file."""
    if "coco_pope" in path.name:
        first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]))
        return
    content = json.loads(path.read_text())
    rows = content.get("data", content)
    rows[0 if isinstance(rows, list) else next(iter(rows))] |= change
    path.write_text(json.dumps(content))


def only_problem(benchmark: Benchmark) -> str:
    """Where the one bad row of a file is, and what is wrong with it."""
    (problem,) = benchmark.load().problems
    return f"{problem.row}: {problem.what}"
