"""The HTML of the page's results. The browser draws tokens from the data in `data-kept`."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from compress import Cost
from foveate.page.media import Media, data_uri
from foveate.page.session import Answer

PARTS = ("vision", "reduce", "plan", "prefill")
_SHORT = 24  # characters of an answer that are shown in large type


def error(text: str) -> str:
    """A sentence in the place of results."""
    return f'<div class="fv-error" role="alert">{html.escape(text)}</div>'


def preview(media: Media) -> str:
    """The picture, or the frames of a video, above the question."""
    shown = "".join(f'<img src="{data_uri(frame)}" alt="">' for frame in media.frames)
    kind = "wide" if len(media.frames) > 1 else "one"
    return f'<div class="fv-preview fv-{kind}">{shown}</div>'


def welcome() -> str:
    """What stands in the place of results before the first question."""
    return (
        '<div class="fv-welcome"><b>Pick a picture, ask, and compare.</b> The model answers once '
        "with all of its visual tokens, and once under each method with the share that you allow. "
        "You see which tokens were kept, merged and dropped, and what that saves.</div>"
    )


def results(media: Media, answers: Sequence[Answer], saliency: list[list[float]]) -> str:
    """One card for the unreduced model and for each method, and the costs below."""
    shared = _attribute(
        {"frames": [data_uri(frame) for frame in media.frames], "saliency": saliency}
    )
    cards = "".join(_card(answer) for answer in answers)
    return (
        f'<div class="fv-results" data-shared="{shared}"><div class="fv-cards">{cards}</div>'
        f"{_costs(answers)}</div>"
    )


def _card(answer: Answer) -> str:
    name = answer.method or "dense"
    report = answer.report
    if answer.error:
        said = error(answer.error)
    elif answer.done or answer.text:
        words = html.escape(answer.text.strip()) or "<i>no words</i>"
        kind = "fv-answer fv-long" if len(words) > _SHORT else "fv-answer"
        said = f'<div class="{kind}">{words}{"" if answer.done else "<u></u>"}</div>'
    else:
        said = '<div class="fv-answer fv-waits">waiting</div>'
    if answer.method is None:
        about = "all visual tokens"
    elif report is None:
        about = "&nbsp;"
    else:
        about = (
            f"{report.reduced.layers[0]} of {report.dense.layers[0]} enter, "
            f"mean {report.budget * report.inputs:.0f}"
        )
    layers = []
    if report is not None:
        side = report.dense if answer.method is None else report.reduced
        layers = list(side.layers)
    kept = _attribute({"inputs": answer.kept, "layers": layers})
    return (
        f'<section class="fv-card" data-key="{html.escape(name, quote=True)}" data-kept="{kept}">'
        f"<header><h3>{html.escape(name)}</h3><small>{about}</small></header>{said}"
        '<div class="fv-view"></div></section>'
    )


def _costs(answers: Sequence[Answer]) -> str:
    measured = [a for a in answers if a.report is not None and _side(a).first is not None]
    if len(measured) < 2:
        return ""
    longest = max(_side(a).first or 0.0 for a in measured)
    largest = max(_side(a).cache for a in measured)
    rows = "".join(_cost_row(a, longest, largest) for a in measured)
    key = "".join(f'<span class="fv-key"><i class="fv-{p}"></i>{p}</span>' for p in PARTS)
    return (
        '<div class="fv-costs"><table><thead><tr><th></th>'
        f"<th>time to first token <span class='fv-keys'>{key}</span></th>"
        "<th>entering</th><th>mean</th><th>KV cache</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cost_row(answer: Answer, longest: float, largest: int) -> str:
    side = _side(answer)
    parts = "".join(
        f'<i class="fv-{part}" style="width:{100 * spent / longest:.2f}%" '
        f'title="{part}: {spent:.2f} ms"></i>'
        for part in PARTS
        if (spent := getattr(side, part) or 0.0)
    )
    mean = sum(side.layers) / len(side.layers)
    memory = f'<i style="width:{100 * side.cache / largest:.1f}%"></i>'
    return (
        f"<tr><th>{html.escape(answer.method or 'dense')}</th>"
        f'<td class="fv-time"><div>{parts}</div><b>{side.first:.1f} ms</b></td>'
        f"<td>{side.layers[0]:,}</td><td>{mean:,.1f}</td>"
        f'<td class="fv-memory"><div>{memory}</div><b>{_bytes(side.cache)}</b></td></tr>'
    )


def _side(answer: Answer) -> Cost:
    if answer.report is None:
        raise ValueError("report is None: the answer has not been measured")
    return answer.report.dense if answer.method is None else answer.report.reduced


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 1024:.0f} KiB"


def _attribute(value: Any) -> str:
    return html.escape(json.dumps(value, separators=(",", ":")), quote=True)
