"""Excel sheets: texts are written unchanged, and nothing is cut silently."""

from __future__ import annotations

from pathlib import Path

import openpyxl
import pytest

from eval.xlsx import LONGEST, write_xlsx


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = [["a", "b"], ["=1+1", "#N/A"], ["<&> ☃\n", "true"], [3, 2.5], [None, " x "]]
    path = write_xlsx(tmp_path / "new" / "sheet.xlsx", rows)
    sheet = openpyxl.load_workbook(path).active
    assert [list(row) for row in sheet.iter_rows(values_only=True)] == rows
    assert {sheet[place].data_type for place in ("A2", "B2", "B3")} == {"s"}


@pytest.mark.parametrize("character", ["\x07", "\ud800", "\ufffe"])
def test_characters_that_xml_forbids_are_replaced(tmp_path: Path, character: str) -> None:
    path = write_xlsx(tmp_path / "sheet.xlsx", [[f"a{character}b"]])
    assert openpyxl.load_workbook(path).active["A1"].value == "a\ufffdb"


def test_a_text_that_no_cell_holds_is_refused(tmp_path: Path) -> None:
    assert write_xlsx(tmp_path / "sheet.xlsx", [["x" * LONGEST]]).is_file()
    with pytest.raises(ValueError, match="row 2: a text of 32768 characters"):
        write_xlsx(tmp_path / "sheet.xlsx", [["x"], ["x" * (LONGEST + 1)]])
