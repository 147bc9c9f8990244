"""Writes the tables of settings, limits and metrics into docs/server.md; --check says whether they are there.

python tools/server_tables.py [--check]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from retrieval_spec.commands.settings import LIMITS, SETTINGS, flag, type_of
from retrieval_spec.service.metrics import ERRORS, HISTOGRAM, INFO, METRICS, PREFIX

PAGE = Path(__file__).resolve().parent.parent / "docs" / "server.md"
_TYPE_NAMES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "tuple": "texts",
}


def settings_table() -> list[str]:
    """Returns a row for every setting."""
    rows = ["| setting | flag | type | default | meaning |", "|---|---|---|---|---|"]
    for name, entry in SETTINGS.items():
        choices = entry.metadata["choices"]
        kind = " or ".join(f"`{choice}`" for choice in choices) or _TYPE_NAMES[type_of(entry).__name__]
        default = "" if entry.default in (None, ()) else f"`{str(entry.default).lower()}`"
        rows.append(f"| `{name}` | `{flag(name)}` | {kind} | {default} | {entry.metadata['meaning']} |")
    return rows


def limits_table() -> list[str]:
    """Returns a row for every limit."""
    rows = ["| limit | default | at most | of what | what is more is |", "|---|---:|---:|---|---|"]
    for name, entry in LIMITS.items():
        facts = entry.metadata
        default, highest = f"{entry.default:,}", f"{facts['highest']:,}"
        rows.append(f"| `{name}` | {default} | {highest} | {facts['meaning']} | {facts['effect']} |")
    return rows


def metrics_table() -> list[str]:
    """Returns a row for every metric."""
    rows = ["| metric | kind | meaning |", "|---|---|---|"]
    rows += [f"| `{PREFIX}{metric.name}` | {metric.kind} | {metric.meaning} |" for metric in METRICS]
    rows.append(f"| `{HISTOGRAM}` | histogram | time of a step in the server |")
    rows.append(f"| `{ERRORS}` | counter | failed calls and rows of steps, by `status` |")
    rows.append(f"| `{INFO}` | gauge | what serves, by `version` |")
    return rows


TABLES = {"settings": settings_table, "limits": limits_table, "metrics": metrics_table}


def filled(text: str) -> str:
    """Returns the page with every table between its marks replaced."""
    for name, table in TABLES.items():
        marks = f"<!-- table: {name} -->", "<!-- end of table -->"
        pattern = re.compile(f"{re.escape(marks[0])}.*?{re.escape(marks[1])}", re.DOTALL)
        body = "\n".join([marks[0], *table(), marks[1]])
        text, count = pattern.subn(lambda found, body=body: body, text)
        assert count == 1, f"no place for the table of {name}"
    return text


if __name__ == "__main__":
    page = PAGE.read_text()
    if "--check" in sys.argv[1:]:
        sys.exit(0 if filled(page) == page else "docs/server.md is out of date: run tools/server_tables.py")
    PAGE.write_text(filled(page))
