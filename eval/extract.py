"""Reading free answers: a choice, yes or no, a short answer. Rules only, no judge model.

Where the rules of lmms-eval and VLMEvalKit agree and are right, these give the same result.
docs/eval.md and the tests list the differences and the reasons. The rules are ours, as those of
the harnesses cannot be imported without them.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence

Judge = Callable[[str, Mapping[str, str]], str | None]
"""Asked last: (answer, options) -> a letter or None."""

_REFUSALS = re.compile(
    r"(?i)^\W*(?:i'?m |i am )?(?:sorry|unable to)\b"
    r"|\bi (?:can ?not|can't|am (?:unable|not able) to)"
    r" (?:answer|help|process|determine|assist|see|view)"
    r"|\bcannot determine the answer|without the image provided|failed to obtain answer"
)
_STATED = (
    r"(?i:\b(?:answers?|options?|choices?|choose|select|pick)"
    r"(?:\s+(?:is|are|be|would|should|must|option|choice|letter|answer))*)\s*[:=]?"
)
_STATED_CHINESE = r"(?:答案|选项|选择|选)\s*(?:是|为)?\s*:?"
# "A" before a word is an article, unless the word is about the letter.
_ABOUT = r"(?:is|was|are|because|since|as|and|or|but|not|matches|shows|seems|would|has)\b"
_NOT_ARTICLE = rf"(?!\s+(?!{_ABOUT})[a-z])"


def choice(
    text: str, options: Mapping[str, str], judge: Judge | None = None, letters: bool = True
) -> str | None:
    """The letter of the option that an answer chooses, or None if it cannot be told.

    options: letter -> text. letters: whether the prompt showed letters; if not, only texts count.
    The first rule that finds exactly one option decides:

    1. the answer, or its last or first line, is a letter: "C", "(c).", "**C**";
    2. it states a letter: "the answer is C", "Option: (C)", "boxed{C}"; the last one counts;
    3. it begins with a label, "C. a dog", and has no other label;
    4. it is the text of an option;
    5. it contains a single letter on its own, "Based on the picture, C" (not the article "A");
    6. a refusal chooses nothing;
    7. it contains the text of one option as whole words, outside the texts of longer options. This
       rule skips answers that exceed 40 characters and twice the length of all options together.

    If no rule decides, `judge` is asked. Raises ValueError if it returns an unknown letter.
    """
    options = {letter: unicodedata.normalize("NFKC", str(o)) for letter, o in options.items()}
    text = unicodedata.normalize("NFKC", text).strip()
    for rule in (_alone, _stated, _labelled, _exact, _single) if letters else (_exact,):
        if (found := rule(text, options)) is not None:
            return found
    if not text or _REFUSALS.search(text):
        return None
    if (found := _contained(text, options)) is not None or judge is None:
        return found
    found = judge(text, options)
    if found is not None and found not in options:
        raise ValueError(f"judge gave {found!r}: expected one of {list(options)} or None")
    return found


def _one(found: Sequence[str]) -> str | None:
    return found[0] if len(set(found)) == 1 else None


def _any(options: Mapping[str, str]) -> str:
    return "[" + "".join(options) + "]"


def _alone(text: str, options: Mapping[str, str]) -> str | None:
    lines = [line for line in text.splitlines() if line.strip()]
    for line in (text, *lines[-1:], *lines[:1]):
        if match := re.fullmatch(rf"[\W_]*((?i:{_any(options)}))[\W_]*", line):
            return match[1].upper()
    return None


def _stated(text: str, options: Mapping[str, str]) -> str | None:
    letter = rf"[\s*_\"'`(\[{{]*({_any(options)})(?![A-Za-z0-9'])"
    several = rf"(?!\W*(?:(?:and|or)\W+)?{_any(options)}(?![A-Za-z0-9']))"
    said = re.finditer(
        rf"{_STATED}{letter}{_NOT_ARTICLE}{several}"
        rf"|{_STATED_CHINESE}{letter}"
        rf"|\\boxed\{{\s*(?:\\text\{{)?{letter}",
        text,
    )
    letters = [next(group for group in match.groups() if group) for match in said]
    return letters[-1] if letters else None


def _labelled(text: str, options: Mapping[str, str]) -> str | None:
    label = rf"(?<![A-Za-z0-9])[(\[]?({_any(options)})(?:[.:)\]、]|\*\*)(?![A-Za-z0-9]\.)"
    if not re.match(rf"[*_\"'\s]*{label}", text):
        return None
    return _one(re.findall(label, text))


def _exact(text: str, options: Mapping[str, str]) -> str | None:
    return _one([letter for letter, value in options.items() if _bare(text) == _bare(value)])


def _single(text: str, options: Mapping[str, str]) -> str | None:
    alone = rf"(?<![A-Za-z0-9'])(?<![A-Za-z]\.)({_any(options)})(?![A-Za-z0-9']|\.[A-Za-z])"
    matches = re.finditer(alone, text)
    letters = [m[1] for m in matches if m[1] != "A" or re.match(_NOT_ARTICLE, text[m.end() :])]
    return _one(letters)


def _contained(text: str, options: Mapping[str, str]) -> str | None:
    answer = text.lower()
    if len(answer) > max(40, 2 * sum(map(len, options.values()))):
        return None
    spans = {letter: _spans(value.lower().strip(), answer) for letter, value in options.items()}
    all_spans = [span for own in spans.values() for span in own]
    free = {
        letter: [span for span in own if not any(_within(span, other) for other in all_spans)]
        for letter, own in spans.items()
    }
    return _one([letter for letter, own in free.items() if own])


def _spans(value: str, answer: str) -> list[tuple[int, int]]:
    if not value:
        return []
    # Word boundaries only where words have them: Chinese is written without spaces.
    before = r"(?<![a-z0-9])" if re.match(r"[a-z0-9]", value) else ""
    after = r"(?![a-z0-9])" if re.search(r"[a-z0-9]$", value) else ""
    return [match.span() for match in re.finditer(before + re.escape(value) + after, answer)]


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]


def _bare(text: str) -> str:
    return " ".join(text.lower().strip(string.punctuation + string.whitespace).split())


# ------------------------------------------------------------------ yes or no


_UNSURE = re.compile(
    r"(?i)\bnot (?:sure|certain|clear|possible)\b|(?:n't|not) (?:know|tell|say|determine)\b"
    r"|\bun(?:able|sure|clear|certain)\b"
)


def yes_no(text: str) -> str | None:
    """Which of "yes" and "no" comes first in the first sentence ("not" is a "no"), or None.

    An answer "y" or "n" counts as well. "Not sure" and similar answers give None.
    """
    if _UNSURE.search(text):
        return None
    sentence = re.split(r"[.!?\n]", text.strip().lower(), maxsplit=1)[0]
    words = re.findall(r"[a-z']+", sentence)
    if words in (["y"], ["n"]):
        return {"y": "yes", "n": "no"}[words[0]]
    for word in words:
        if word == "yes":
            return "yes"
        if word in ("no", "not") or word.endswith("n't"):
            return "no"
    return None


# ------------------------------------------------------------------ short answers

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's "
    "how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've "
    "o'clock oughtn't shan't should've shouldn't that's there'd there're there's they'd they'll "
    "they're they've wasn't we've weren't what'll what're what's what've when's where'd where's "
    "where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd "
    "you'll you're you've someone'd something'd somebody'd"
)
_TWO_APOSTROPHES = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've there'd've they'd've "
    "we'd've who'd've wouldn't've y'all'd've you'd've someone'd've something'd've somebody'd've"
)
_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word  # each with one apostrophe left out
    for word in f"{_ONE_APOSTROPHE} {_TWO_APOSTROPHES}".split()
    for at, character in enumerate(word)
    if character == "'"
}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def normalise_vqa(text: str) -> str:
    """An answer in the form that EvalAI's VQA and TextVQA servers compare.

    Lower case; no commas, question marks and articles; " 's" apart; marks dropped where a space is
    beside one of their kind (or a comma between digits is in the text), else made a space; full
    stops dropped unless a digit follows; numbers up to ten in digits; contractions with their
    apostrophes.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space else " ")
    out = re.sub(r"\.(?!\d)", "", out)
    words = [_DIGITS.get(word, word) for word in out.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_score(text: str, answers: Sequence[str]) -> float:
    """VQA accuracy (Antol et al. 2015) of an answer, given the answers of several people.

    Mean, over each person left out, of min(1, others who said the same / 3).
    """
    said = normalise_vqa(text)
    same = [normalise_vqa(answer) == said for answer in answers]
    matches = sum(same)
    return sum(min(1.0, (matches - own) / 3) for own in same) / len(answers)


def normalise_words(text: str) -> str:
    """Lower case, no punctuation, single spaces: how GQA's short answers are compared."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())
