"""Every row of the promises has tests, and the page of promises names every row."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from tests.conftest import REPOSITORY
from tests.rows import ROWS, check_known, collected

MARK = re.compile(r"\bmark\.row\(([^)]*)\)")


def rows_in_sources() -> set[str]:
    sources = (REPOSITORY / "tests").rglob("test_*.py")
    marks = [found for source in sources for found in MARK.findall(source.read_text())]
    return {row for mark in marks for row in re.findall(r'"([^"]+)"', mark)}


def test_every_row_has_tests_and_every_marked_row_is_known():
    assert rows_in_sources() == set(ROWS)


def test_the_page_of_promises_lists_every_row_with_its_meaning():
    page = (REPOSITORY / "docs" / "promises.md").read_text()
    listed = dict(re.findall(r"^\| ([A-Z][\w/-]*) \| ([^|]+) \|", page, re.M))
    assert listed == ROWS


def test_the_page_of_bugs_names_tests_that_exist():
    page = (REPOSITORY / "docs" / "track_record.md").read_text()
    sources = "\n".join(source.read_text() for source in (REPOSITORY / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) >= 30
    assert [name for name in sorted(named) if f"def {name}(" not in sources] == []


def test_an_unknown_row_stops_the_run():
    with pytest.raises(pytest.UsageError, match="no such row: Z9"):
        check_known(["F1", "Z9"], "somewhere")


def report(when, outcome, seconds=1.0, rows=("F1",), longrepr=""):
    return SimpleNamespace(
        when=when,
        outcome=outcome,
        duration=seconds,
        user_properties=[("rows", list(rows))],
        failed=outcome == "failed",
        skipped=outcome == "skipped",
        longrepr=longrepr,
    )


def test_what_is_skipped_is_told_with_its_reason_and_is_not_passed():
    stats = {
        "passed": [report("call", "passed", rows=("F1", "D2"))],
        "": [report("setup", "passed", 0.5)],
        "skipped": [report("setup", "skipped", longrepr=("file.py", 3, "Skipped: no such tool"))],
        "error": [report("setup", "failed")],
        "deselected": [SimpleNamespace(user_properties=[("rows", ["F1"])])],
    }
    outcomes, seconds, reasons = collected(stats)
    assert outcomes["F1"] == {"passed": 1, "skipped": 1, "failed": 1}
    assert outcomes["D2"] == {"passed": 1}
    assert seconds["F1"] == 3.5
    assert reasons["F1"] == {"no such tool": 1}
