"""Excel files of one sheet, which evaluation servers ask for, written with openpyxl.

Needs the package openpyxl, which comes with the extra `eval`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.records import replace

LONGEST = 32_767  # characters in a cell; openpyxl cuts longer texts without a word
# XML 1.0 allows none of these, and a model may well write them. openpyxl knows the first range only.
_FORBIDDEN = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_xlsx(path: Path, rows: Sequence[Sequence[str | int | float | None]]) -> Path:
    """Write rows to the first sheet; None leaves a cell empty. Returns the path.

    Every text is written as text, also "=1+1" and "#N/A"; characters that XML forbids become
    U+FFFD. Raises ValueError for a text of more than 32,767 characters.
    """
    import openpyxl

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    for number, row in enumerate(rows, 1):
        sheet.append([_cell(sheet, value, number) for value in row])
    buffer = io.BytesIO()
    book.save(buffer)
    return replace(path, buffer.getvalue())


def _cell(sheet: Any, value: str | int | float | None, row: int) -> Any:
    from openpyxl.cell import WriteOnlyCell

    if not isinstance(value, str):
        return WriteOnlyCell(sheet, value)
    if len(value) > LONGEST:
        raise ValueError(
            f"row {row}: a text of {len(value)} characters, and an Excel cell holds {LONGEST}"
        )
    cell = WriteOnlyCell(sheet, _FORBIDDEN.sub("\ufffd", value))
    cell.data_type = "s"  # not a formula or an error code
    return cell
