"""Reading answers: the rules compared with those of VLMEvalKit and lmms-eval, case by case.

`vlmevalkit` and `first_letter` below restate two harnesses' documented rules in a few lines, so
that the columns of the tables are checked and not remembered. The column of lmms-eval is checked
against its own code where that package is installed.
"""

from __future__ import annotations

import re

import pytest

from eval.extract import choice, normalise_vqa, normalise_words, vqa_score, yes_no

OPTIONS = {"A": "dog", "B": "cat", "C": "bird", "D": "black cat"}


def vlmevalkit(text: str) -> str:
    """VLMEvalKit's offline rule for multiple choice (`exact_matching`), "-" for nothing."""
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    there = [letter for letter in OPTIONS if letter in words]
    refusals = (
        "Sorry, I can't help with images of people yet.",
        "I'm sorry, but without the image",
    )
    if any(refusal in text for refusal in refusals):
        return "-"
    if len(there) == 1 and words.index(there[0]) > len(words) - 5:
        return there[0]
    if said := re.search(r"(?i)answer\s+is\s+\**([ABCD])\**", text):
        return said[1].upper()
    low = text.lower()
    if len(low) > 2 * sum(map(len, OPTIONS.values())):
        return "-"
    contained = [letter for letter, value in OPTIONS.items() if value in low]
    return contained[0] if len(contained) == 1 else "-"


def first_letter(text: str) -> str:
    """Video-MME's published rule: prefixes off, then the first of A to D. Two of the prefixes are
    fused with their neighbours by missing commas, so that they never match."""
    prefixes = ("The best answer is", "The correct answer is", "The answer is", "The answer")
    fused = ("The best option isThe correct option is", "Best answer:Best option:")
    for prefix in (*prefixes, *fused, "Answer:", "Option:"):
        text = text.replace(prefix, "")
    match = re.search("[ABCD]", text)
    return match[0] if match else "-"


AGREED = [
    ("C", "C"),
    ("C.", "C"),
    ("(C)", "C"),
    (" C\n", "C"),
    ("C. bird", "C"),
    ("(C) bird", "C"),
    ("C: bird", "C"),
    ("The answer is C", "C"),
    ("Answer: C", "C"),
    ("Best answer: C", "C"),
    ("Option C", "C"),
    ("Answer:C", "C"),
    ("The best answer is C", "C"),
    ("\\boxed{C}", "C"),
    ("A cat is on the mat.", "B"),
    ("a dog", "A"),
    ("A", "A"),
    ("A\nIt barks.", "A"),
    ("Based on the picture, C", "C"),
    ("Based on the picture, the answer is C", "C"),
    ("It is a bird.", "C"),
    ("bird", "C"),
    ("Bird.", "C"),
    ("C is for cat", "C"),
    ("Final answer: (D) black cat", "D"),
    ("C\nC\nC", "C"),
    ("I cannot see the dog, so B", "B"),
    ("The answer is A. cat", "A"),
    ("The answer is **C. bird**", "C"),
    ("The animal's colour is black", "-"),
    ("Sorry, I can't help with images of people yet.", "-"),
    ("I'm sorry, but without the image provided I cannot say.", "-"),
    ("", "-"),
]

# text, ours, VLMEvalKit, lmms-eval; the comment says why ours.
DIFFERENT = [
    ("c", "C", "-", "-"),  # the answer is plain, whatever its case
    ("(c).", "C", "-", "-"),
    ("A cat", "B", "A", "A"),  # an article is no letter
    ("The answer is A cat.", "B", "A", "B"),
    ("U.S.A.", "-", "A", "A"),  # nor is an abbreviation
    ("It's in the A.M.", "-", "A", "A"),
    ("A is correct because the animal barks.", "A", "-", "A"),  # a letter early in a long answer
    ("B is right, as the animal in the picture has whiskers and it purrs", "B", "-", "B"),
    ("black cat", "D", "-", "-"),  # "cat" is only there within "black cat"
    ("It is a black cat.", "D", "-", "-"),
    ("Birds", "-", "C", "C"),  # whole words only: "1" is not in "10"
    ("A or B", "-", "-", "A"),  # two letters are no choice
    ("Both B and C", "-", "-", "C"),
    ("I think it is (B) and not (C)", "-", "-", "C"),
    ("The options are A and B", "-", "-", "B"),
    ("Options: A, B, C, D", "-", "-", "D"),
    ("A. dog B. cat C. bird D. black cat", "-", "-", "A"),  # nor is the list of options
    ("ABCD", "-", "-", "D"),
    ("Between the options A and B, I pick B", "B", "-", "B"),  # what it says decides
    ("A is wrong and B is wrong, so the answer is C", "C", "C", "A"),
    ("The correct answer is **B**. Here's why: A looks wrong.", "B", "B", "A"),
    ("Not A, not B.\n\nC", "C", "-", "C"),  # a last line of one letter
    ("D\n\nExplanation: A is wrong. B is wrong. C is wrong", "D", "-", "D"),  # or a first one
    ("The answer isB", "B", "-", "B"),
    ('The letter is "B"', "B", "-", "B"),
    ("答案是C", "C", "-", "C"),
    ("选C", "C", "-", "C"),
    ("E", "-", "-", "E"),  # no option is called E
    ("Cats are never birds", "-", "-", "C"),  # the C of "Cats"
    ("The bird sits on a wire above a very long street that goes on and on", "-", "-", "C"),
]

# text, ours, Video-MME's published rule, lmms-eval's for Video-MME.
VIDEO = [
    ("Based on the picture, C", "C", "B", "C"),  # the B of "Based"
    ("Best answer: C", "C", "B", "C"),  # the B of "Best": its prefix is fused
    ("Bird.", "C", "B", "B"),
    ("A cat is on the mat.", "B", "A", "A"),
    ("Not A, not B.\n\nC", "C", "A", "C"),
    ("A is wrong and B is wrong, so the answer is C", "C", "A", "A"),
    ("Both B and C", "-", "B", "C"),
    ("The best answer is C", "C", "C", "C"),
    ("D", "D", "D", "D"),
]


@pytest.mark.parametrize(("text", "letter"), AGREED)
def test_where_the_harnesses_agree_so_do_we(text: str, letter: str) -> None:
    assert (choice(text, OPTIONS) or "-") == letter
    assert vlmevalkit(text) == letter


@pytest.mark.parametrize(("text", "ours", "theirs", "_"), DIFFERENT)
def test_where_we_differ_on_purpose(text: str, ours: str, theirs: str, _: str) -> None:
    assert (choice(text, OPTIONS) or "-") == ours
    assert vlmevalkit(text) == theirs


@pytest.mark.parametrize(("text", "ours", "theirs", "_"), VIDEO)
def test_video_mme(text: str, ours: str, theirs: str, _: str) -> None:
    assert (choice(text, OPTIONS) or "-") == ours
    assert first_letter(text) == theirs


def test_the_column_of_lmms_eval() -> None:
    pytest.importorskip("lmms_eval")
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    evaluator = MMBench_Evaluator()
    for text, _, _, theirs in DIFFERENT:
        actual = evaluator.can_infer(text, dict(OPTIONS)) or extract_mcq_answer(text, list(OPTIONS))
        assert (actual or "-") == theirs, text
    for text, letter in AGREED:
        actual = evaluator.can_infer(text, dict(OPTIONS)) or extract_mcq_answer(text, list(OPTIONS))
        assert (actual or "-") == letter, text
    for text, _, _, theirs in VIDEO:
        assert (extract_mcq_answer(text, ["A", "B", "C", "D"]) or "-") == theirs, text


def test_numbers_are_whole() -> None:
    options = {"A": "1", "B": "10", "C": "100"}
    assert choice("There are 10.", options) == "B"
    assert choice("100 people", options) == "C"
    assert choice("1 or 10", options) is None


def test_full_width_and_chinese() -> None:
    options = {"A": "一只猫", "B": "狗", "C": "小狗"}
    assert choice("答案:B", options) == "B"
    assert choice("\uff08\uff23\uff09", options) == "C"  # (C) in full width
    assert choice("是一只猫", options) == "A"
    assert choice("小狗。", options) == "C"


def test_letters_as_texts_mean_the_labels_where_there_are_labels() -> None:
    options = {"A": "B", "B": "A"}
    assert choice("A", options) == "A"
    assert choice("A", options, letters=False) == "B"


def test_a_judge_must_give_an_option() -> None:
    with pytest.raises(ValueError, match="judge gave 'X'"):
        choice("no idea", OPTIONS, judge=lambda text, options: "X")


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        # lmms-eval's POPE takes the bare word only: it would count these as wrong.
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("No, there is not.", "no"),
        ("Yes, there is no dog", "yes"),
        # No "yes" or "no" in them: POPE's own rule goes by "not" too.
        ("There is not a dog", "no"),
        ("It isn't there.", "no"),
        ("There is no dog. Yes.", "no"),
        ("Y", "yes"),
        ("n", "no"),
        # POPE's own rule calls whatever has no "no" a yes, MME's looks for the letters of "yes" and
        # "no" in the first four characters: both would read an answer into these.
        ("", None),
        ("maybe", None),
        ("The dog is there", None),
        ("Eyes", None),
        ("Note", None),
        ("not sure", None),
        ("I don't know", None),
    ],
)
def test_yes_or_no(text: str, ours: str | None) -> None:
    assert yes_no(text) == ours


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Dog", "dog"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("U.S.A.", "usa"),
        ("3.5", "3.5"),
        ("10.", "10"),
        ("1,000", "1000"),
        ("well-known", "well known"),
        ("red / green", "red green"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("the dog's", "dog 's"),
        ("oclock", "o'clock"),
        ("a (b) c", "b c"),
        ("24:00", "24:00"),
        ("a\nb", "b"),
    ],
)
def test_vqa_normal_form(text: str, normal: str) -> None:
    assert normalise_vqa(text) == normal


def test_vqa_normal_form_is_that_of_lmms_eval() -> None:
    metric = pytest.importorskip("lmms_eval.tasks._task_utils.vqa_eval_metric")
    theirs = metric.EvalAIAnswerProcessor()
    words = ["The Dog's", "e-mail", "C++", "$5", ".5", "v1.2.3", "x=1", "hello, world", "'s", "#1"]
    words += ["they'd've", "yall", "what's", "x_y", "A, B", "half-past 3", "it's", "  "]
    for word in words:
        assert normalise_vqa(word) == theirs(word), word


def test_vqa_score_is_the_mean_over_the_people_left_out() -> None:
    answers = ["k7"] * 3 + ["kt"] + ["other"] * 6
    # Of ten people left out in turn, three leave two who agree, seven leave three.
    assert vqa_score("K7.", answers) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert vqa_score("kt", answers) == pytest.approx((0 + 9 * 1 / 3) / 10)
    assert vqa_score("other", answers) == 1.0
    assert vqa_score("", answers) == 0.0


def test_words_are_compared_without_case_and_marks() -> None:
    assert normalise_words(" T-Shirt. ") == normalise_words("tshirt")
    assert normalise_words("on  the left") == "on the left"
