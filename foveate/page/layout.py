"""The page itself: what is on it, and what its parts do."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr

import vlm
from compress import list_methods
from compress.parse import split_list
from foveate.page import cards
from foveate.page.media import Example, Media, examples, read
from foveate.page.session import MOST_METHODS, SCHEDULES, Question, Session, code, sentence

HERE = Path(__file__).parent
METHODS = ("duet", "foveate", "divprune")
SHARE, COUNT = "share, %", "tokens"
POSITIONS = ("original", "compact", "sequential", "v2pe:1/4")
HEAD = (
    '<div class="fv-head"><h1><i></i>Foveate</h1><p>What does a vision-language model still see '
    "with a third of its visual tokens?</p><p>model <code>{}</code></p></div>"
)
SCHEDULE_CHOICES = [
    ("own", SCHEDULES[0]),
    ("as published", SCHEDULES[1]),
    ("by this model's probe", SCHEDULES[2]),
]
CALIBRATIONS = [
    ("own", "own"),
    ("size and first layer", "size+first_layer"),
    ("none", "none"),
]
# The errors that a question can end with; anything else is a defect and is shown by Gradio.
EXPECTED = (ValueError, TypeError, OSError, RuntimeError)


@dataclass(frozen=True)
class Settings:
    """What the controls are set to.

    source: the key of an example, or the path of an uploaded file. unit: SHARE or COUNT.
    """

    source: dict[str, str]
    text: str
    methods: list[str]
    unit: str
    budget: float
    positions: str
    schedule: str
    calibrate: str

    def question(self, media: Media) -> Question:
        """The question that they ask about a picture or video."""
        amount = int(self.budget) if self.unit == COUNT else self.budget / 100
        return Question(
            media,
            self.text,
            tuple(self.methods),
            amount,
            self.positions,
            self.schedule,
            self.calibrate,
        )

    def link(self) -> str:
        """The query of an address that opens the page with these settings."""
        given = {
            "question": self.text,
            "methods": ",".join(self.methods),
            "unit": "tokens" if self.unit == COUNT else "share",
            "budget": f"{self.budget:.0f}",
            "positions": self.positions,
            "schedule": self.schedule,
            "calibrate": self.calibrate,
        }
        return urlencode(given | {k: v for k, v in self.source.items() if k == "example"})


class Page:
    """The parts of the page around one session. `blocks` is what is launched."""

    def __init__(self, session: Session, folder: Path) -> None:
        self.session, self.folder = session, folder
        self.examples = examples(session.name)
        self.by_key = {example.key: example for example in self.examples}
        with gr.Blocks(
            title="Foveate", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
        ) as self.blocks:
            gr.HTML(HEAD.format(html.escape(session.name)))
            self.source = gr.State({"example": self.examples[0].key})
            with gr.Row(equal_height=False, elem_id="columns"):
                with gr.Column(scale=3, min_width=300):
                    self._asking()
                with gr.Column(scale=9, min_width=320):
                    self._answers()
            self._wire()

    def _asking(self) -> None:
        first = self.examples[0]
        self.preview = gr.HTML(cards.preview(first.media))
        self.gallery = gr.Gallery(
            [example.media.frames[0] for example in self.examples],
            show_label=False,
            columns=len(self.examples),
            rows=1,
            height=66,
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            elem_id="examples",
            buttons=[],
        )
        with gr.Tab("Upload"):
            self.upload = gr.File(
                show_label=False,
                file_types=["image", "video"],
                height=110,
                elem_id="upload",
            )
        with gr.Tab("Webcam"):
            self.webcam = gr.Image(
                sources=["webcam"], type="filepath", show_label=False, height=220
            )
        self.question = gr.Textbox(first.question, label="Question", lines=2, elem_id="question")
        self.methods = gr.Dropdown(
            list_methods(),
            value=[*METHODS],
            multiselect=True,
            max_choices=MOST_METHODS,
            label=f"Methods, up to {MOST_METHODS}",
            elem_id="methods",
        )
        with gr.Row():
            self.unit = gr.Radio([SHARE, COUNT], value=SHARE, show_label=False, elem_id="unit")
        self.budget = gr.Slider(1, 100, value=33, step=1, label="Budget", elem_id="budget")
        self.positions = gr.Dropdown(
            [*POSITIONS],
            value=POSITIONS[0],
            label="Positions of kept tokens",
            allow_custom_value=True,
            elem_id="positions",
        )
        with gr.Row():
            self.schedule = gr.Dropdown(
                SCHEDULE_CHOICES,
                value=SCHEDULES[0],
                label="Schedule",
                elem_id="schedule",
                min_width=120,
            )
            self.calibrate = gr.Dropdown(
                CALIBRATIONS,
                value="own",
                label="Calibration",
                elem_id="calibrate",
                min_width=120,
            )
        self.ask = gr.Button("Ask", variant="primary", elem_id="ask")

    def _answers(self) -> None:
        self.results = gr.HTML(cards.welcome(), elem_id="results")
        with gr.Accordion("Python, link and downloads", open=False, elem_id="more"):
            self.code = gr.Code(language="python", label="The same in Python", interactive=False)
            self.link = gr.HTML()
            with gr.Row():
                self.picture = gr.DownloadButton("Picture", interactive=False, elem_id="picture")
                self.tensors = gr.DownloadButton("Tensors", interactive=False, elem_id="tensors")

    def _wire(self) -> None:
        controls = [self.methods, self.unit, self.budget, self.positions, self.schedule]
        controls.append(self.calibrate)
        given = [self.source, self.question, *controls]
        made = [self.results, self.code, self.link, self.picture, self.tensors]
        run: dict[str, Any] = {
            "fn": self.answer,
            "inputs": given,
            "outputs": made,
            "concurrency_limit": 1,
            "concurrency_id": "model",
            "show_progress": "hidden",
            "trigger_mode": "always_last",
        }
        self.ask.click(**run)
        self.question.submit(**run)
        self.budget.release(**run)
        chosen = [self.source, self.preview, self.question, self.results]
        self.gallery.select(self.choose, outputs=chosen, show_progress="hidden")
        for brought in (self.upload, self.webcam):
            brought.change(
                self.bring,
                [brought, self.source],
                [self.source, self.preview, self.results],
                show_progress="hidden",
            )
        self.unit.input(
            self.change_unit, [self.unit, self.budget, self.source], self.budget, queue=False
        )
        opened = [self.source, self.preview, self.question, *controls]
        self.blocks.load(self.open, outputs=opened, show_progress="hidden").then(**run)

    # ------------------------------------------------------------ what the parts do

    def choose(self, event: gr.SelectData) -> tuple[Any, ...]:
        """An example was clicked."""
        example = self.examples[int(event.index)]
        source = {"example": example.key}
        return source, cards.preview(example.media), example.question, cards.welcome()

    def bring(self, path: str | None, source: dict[str, str]) -> tuple[Any, ...]:
        """A file was uploaded, or a picture taken; or it was taken away again."""
        if path is None:
            if "path" in source:
                source = {"example": self.examples[0].key}
            return source, cards.preview(self._media(source)), gr.skip()
        try:
            media = read(path)
        except vlm.MediaError as error:
            return source, gr.skip(), cards.error(sentence(error))
        return {"path": path}, cards.preview(media), cards.welcome()

    def change_unit(self, unit: str, budget: float, source: dict[str, str]) -> Any:
        """The slider counts tokens, or a share of them."""
        dense = self.session.dense_tokens(self._media(source))
        if unit == COUNT:
            value = max(1, round(dense * budget / 100))
            return gr.Slider(1, dense, value=min(value, dense), step=1)
        return gr.Slider(1, 100, value=min(100, max(1, round(100 * budget / dense))), step=1)

    def answer(self, *given: Any) -> Iterator[tuple[Any, ...]]:
        """The results as they come; then code, link and downloads. given: the `Settings`."""
        nothing, settings = gr.skip(), Settings(*given)
        try:
            question = settings.question(self._media(settings.source))
            for answers, saliency in self.session.ask(question):
                shown = cards.results(question.media, answers, saliency)
                yield shown, nothing, nothing, nothing, nothing
            prompt, _ = self.session.prompt(question)
            lines = code(question, self.session.name, prompt)
            yield nothing, lines, self._link(settings), nothing, nothing
            if any(answer.error for answer in answers):
                return
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            picture, tensors = self.session.save(question, folder)
            yield (
                nothing,
                nothing,
                nothing,
                gr.DownloadButton(value=str(picture), interactive=True),
                gr.DownloadButton(value=str(tensors), interactive=True),
            )
        except EXPECTED as error:
            yield cards.error(sentence(error)), nothing, nothing, nothing, nothing

    def open(self, request: gr.Request) -> tuple[Any, ...]:
        """The settings in a link, or the page's own."""
        asked: Mapping[str, str] = dict(request.query_params)
        example = self.by_key.get(asked.get("example", ""), self.examples[0])
        known, known_terms = set(list_methods()), [value for _, value in CALIBRATIONS]
        methods = [m for m in split_list(asked.get("methods", "")) if m in known][:MOST_METHODS]
        unit = COUNT if asked.get("unit") == "tokens" else SHARE
        most = self.session.dense_tokens(example.media) if unit == COUNT else 100
        budget = asked.get("budget", "33")
        value = int(budget) if budget.isdecimal() else 33
        return (
            {"example": example.key},
            cards.preview(example.media),
            asked.get("question", example.question)[:2000],
            methods or [*METHODS],
            unit,
            gr.Slider(1, most, value=min(max(1, value), most), step=1),
            asked.get("positions", POSITIONS[0])[:40],
            schedule if (schedule := asked.get("schedule")) in SCHEDULES else SCHEDULES[0],
            calibrate if (calibrate := asked.get("calibrate")) in known_terms else "own",
        )

    def _link(self, settings: Settings) -> str:
        own = "" if "example" in settings.source else " (the uploaded file is not part of it)"
        return (
            f'<p class="fv-link"><a href="?{html.escape(settings.link(), quote=True)}">'
            f"Link to these settings</a>{own}</p>"
        )

    def _media(self, source: dict[str, str]) -> Media:
        if "path" in source:
            return read(source["path"])
        example: Example = self.by_key.get(source.get("example", ""), self.examples[0])
        return example.media


def launch_options() -> dict[str, Any]:
    """How the page looks; system fonts, since nothing is fetched from elsewhere."""
    sans, mono = (
        ["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        ["ui-monospace", "monospace"],
    )
    theme = gr.themes.Soft(
        primary_hue="teal", neutral_hue="slate", radius_size="lg", font=sans, font_mono=mono
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return {
        "theme": theme,
        "css": (HERE / "page.css").read_text(encoding="utf-8"),
        "js": f"() => {{ {script} }}",
    }
