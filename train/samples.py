"""Samples: one conversation with its media, from records of either of two forms.

LLaVA:     {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}
messages:  {"messages": [{"role": "user", "content": "<image>..."}, ...], "images": ["a.jpg"]}

Both take one medium or a list of them ("image", "images", "video", "videos"). `<image>` and
`<video>` mark where they belong. Without such marks they come before the first question.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = ("image", "video")
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_PLACE = re.compile(r"\s*<(image|video)>\s*")


class SampleError(ValueError):
    """A sample cannot be used for training. The message gives the reason."""


@dataclass(frozen=True)
class Sample:
    """One conversation.

    Attributes:
        messages: pairs (role, parts). A part is ("text", text), ("image", path) or
            ("video", path). Roles are an optional "system", then "user" and "assistant" in turn.
    """

    messages: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

    @property
    def media(self) -> list[tuple[str, str]]:
        """(kind, path) of every visual input, in order."""
        return [part for _, parts in self.messages for part in parts if part[0] in KINDS]

    @property
    def text(self) -> str:
        """All text, to estimate the length."""
        return " ".join(words for _, parts in self.messages for k, words in parts if k == "text")


def parse(record: Mapping[str, Any]) -> Sample:
    """The sample that a record of either form describes.

    Raises SampleError for another form, a turn without text or with an unknown role, turns out of
    order, an empty answer, or placeholders that do not match the media.
    """
    if "conversations" in record:
        turns = [_turn(turn, "from", "value") for turn in _list(record, "conversations")]
    elif "messages" in record:
        turns = [_turn(turn, "role", "content") for turn in _list(record, "messages")]
    else:
        keys = ", ".join(map(repr, record))
        raise SampleError(f"expected 'conversations' or 'messages', got {keys}")
    media = {kind: _media(record, kind) for kind in KINDS}
    turns = _placed(turns, media)
    roles = [role for role, _ in turns]
    if (
        roles and roles[0] == "assistant"
    ):  # LLaVA's data contain some; there is no question for such a turn
        turns, roles = turns[1:], roles[1:]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or talk != ["user", "assistant"] * (len(talk) // 2):
        raise SampleError(
            f"the turns are {', '.join(roles) or 'none'}: expected user and assistant in turn, "
            "after at most one system turn"
        )
    return Sample(tuple((role, tuple(parts)) for role, parts in turns))


Turn = tuple[str, list[tuple[str, str]]]


def _list(record: Mapping[str, Any], key: str) -> list[Any]:
    value = record[key]
    if not isinstance(value, list) or not value:
        raise SampleError(f"{key!r} is {value!r:.60}: expected a list of turns")
    return value


def _turn(turn: Any, role_key: str, text_key: str) -> Turn:
    if not isinstance(turn, Mapping) or role_key not in turn or text_key not in turn:
        raise SampleError(f"a turn is {turn!r:.80}: expected {role_key!r} and {text_key!r}")
    role, content = turn[role_key], turn[text_key]
    if role not in _ROLES:
        raise SampleError(f"a turn is by {role!r}: expected one of {', '.join(_ROLES)}")
    if isinstance(content, str):
        return _ROLES[role], _split(content)
    if not isinstance(content, list):
        raise SampleError(f"a turn's {text_key!r} is {content!r:.60}: expected text")
    parts: list[tuple[str, str]] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts += _split(part["text"])
        elif kind in KINDS:
            parts.append((kind, str(part.get(kind) or part.get("path") or "")))
        else:
            raise SampleError(f"a part of a turn is {part!r:.60}: expected text, image or video")
    return _ROLES[role], parts


def _split(text: str) -> list[tuple[str, str]]:
    """Text and placeholders. White space beside a placeholder is left to the template."""
    pieces = _PLACE.split(text)
    parts = []
    for number, piece in enumerate(pieces):
        if number % 2:
            parts.append((piece, ""))
        elif piece:
            parts.append(("text", piece))
    return parts


def _media(record: Mapping[str, Any], kind: str) -> list[str]:
    paths = []
    for key in (kind, f"{kind}s"):
        value = record.get(key)
        for item in value if isinstance(value, list) else [value] if value is not None else []:
            path = item.get("path") if isinstance(item, Mapping) else item
            if not isinstance(path, str) or not path:
                raise SampleError(f"{key!r} holds {item!r:.60}: expected the path of a file")
            paths.append(path)
    return paths


def _placed(turns: list[Turn], media: dict[str, list[str]]) -> list[Turn]:
    """The turns with a path at every placeholder."""
    for kind, paths in media.items():
        places = [
            (parts, at) for _, parts in turns for at, part in enumerate(parts) if part == (kind, "")
        ]
        if paths and not places:
            first = next((parts for role, parts in turns if role == "user"), None)
            if first is None:
                raise SampleError("there is no question: expected a turn of the user")
            first[:0] = [(kind, path) for path in paths]
        elif len(places) != len(paths):
            raise SampleError(
                f"the turns contain <{kind}> {len(places)} times, but {len(paths)} {kind}s are "
                "given: expected the same number"
            )
        else:
            for (parts, at), path in zip(places, paths, strict=True):
                parts[at] = (kind, path)
    for role, parts in turns:
        if role != "user" and any(kind in KINDS for kind, _ in parts):
            raise SampleError(f"the {role}'s turn contains an image or a video: expected text only")
        if role == "assistant" and not any(words.strip() for _, words in parts):
            raise SampleError("an answer is empty")
    return turns
