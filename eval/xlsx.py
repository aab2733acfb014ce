"""Excel files of one sheet, which evaluation servers ask for, written with openpyxl.

Needs the package openpyxl, which comes with the extra `eval`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

from eval.records import replace

LONGEST = 32_767  # characters in a cell; openpyxl silently cuts longer texts
# XML 1.0 forbids these, and a model may write them. openpyxl only knows those below U+0020.
_FORBIDDEN = re.compile(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_xlsx(path: Path, rows: Sequence[Sequence[str | int | float | None]]) -> Path:
    """Write rows to the first sheet; None leaves a cell empty. Returns the path.

    Text is always written as text, "=1+1" and "#N/A" too. Characters that XML forbids become
    U+FFFD. Raises ValueError for a text of more than 32,767 characters.
    """
    import openpyxl

    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Sheet1"
    for number, row in enumerate(rows, 1):
        for column, value in enumerate(row, 1):
            cell = sheet.cell(number, column)
            if not isinstance(value, str):
                cell.value = value
                continue
            if len(value) > LONGEST:
                raise ValueError(
                    f"row {number}: a text of {len(value)} characters, but an Excel cell holds "
                    f"at most {LONGEST}"
                )
            cell.value = _FORBIDDEN.sub("\ufffd", value)
            cell.data_type = "s"  # otherwise "=..." is a formula and "#N/A" an error
    buffer = io.BytesIO()
    book.save(buffer)
    return replace(path, buffer.getvalue())
