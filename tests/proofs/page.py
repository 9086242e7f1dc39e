"""docs/proofs.md: each command writes its own part of the page, and leaves the other as it is."""

import re
from collections.abc import Sequence
from pathlib import Path

from proofs import ROOT

PAGE = ROOT / "docs" / "proofs.md"
PARTS = {"prove": "Proofs", "prove-mutants": "Mutants"}
"""Headings, by the command (of make) that writes below them; in the page's order."""
_HEAD = """# The proofs of the ledger

What [the ledger](ledger.md) promises, and what was run to see whether it holds. Each command below
prints its table, and with `ARGS='--write'` writes it here; nothing on this page is written by hand.
"""
_NEVER = "Nothing was written yet."


def write(
    command: str,
    said: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    verdict: str,
    page: Path = PAGE,
) -> None:
    """Replaces the command's part.

    Args:
        command: A key of PARTS.
        said: The whole command with its settings, and the machine: where the figures are from.
        header: Of the table.
        rows: Of it, a cell a column.
        verdict: A sentence below the table.
        page: The file; made if it is not there.
    """
    assert all(len(header) == len(row) for row in rows)
    lines = [said, "", _line(header), "|" + "---|" * len(header), *map(_line, rows), "", verdict]
    parts = _parts(page.read_text() if page.exists() else "")
    parts[command] = "\n".join(lines)
    sections = (f"## {title}\n\n{parts[name]}\n" for name, title in PARTS.items())
    page.write_text("\n".join([_HEAD, *sections]))


def _parts(text: str) -> dict[str, str]:
    """What stands below each heading now."""
    parts = {}
    for command, title in PARTS.items():
        found = re.search(rf"^## {title}\n\n(.*?)\n*(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
        parts[command] = found[1] if found else f"{_NEVER} `make {command} ARGS='--write'` does."
    return parts


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells)
    return "| " + " | ".join(escaped) + " |"
