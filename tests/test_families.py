"""The page of families states exactly what the tests show."""

from __future__ import annotations

from tests import families
from tests.compress.runtime import test_training, test_zero3
from tests.tiny import CASES
from vlm.families import ADAPTERS


def test_the_page_is_what_is_generated() -> None:
    assert families.PAGE.read_text() == families.page(), "run python -m tests.families"


def test_every_family_has_a_case() -> None:
    known = {kind for family in ADAPTERS for kind in family.model_types}
    assert known == {case.config(4).model_type for case in CASES}


def test_other_pages_count_the_model_types() -> None:
    count = len({kind for family in ADAPTERS for kind in family.model_types})
    root = families.PAGE.parent.parent
    assert f"{count} model types" in (root / "CHANGELOG.md").read_text()
    assert f"{count} model types" in (root / "docs" / "comparison.md").read_text()
    assert f"{count - 2} other model types" in (root / "docs" / "index.md").read_text()


def test_a_claim_holds_for_the_cases_that_its_test_names() -> None:
    zero = test_zero3.test_zero3_with_images_on_one_process_only
    tested = [case.name for case in CASES if families.runs(zero, case)]
    assert tested == ["llava", "qwen2_vl", "qwen3_vl", "foveate"]
    assert families.runs(test_training.test_text_alone_trains_as_ever, CASES[0]) == 0
