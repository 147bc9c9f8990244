"""What a terminal shows of long work, and what anything else is spared."""

from __future__ import annotations

import io
import sys

import pytest

from retrieval_spec.commands import progress_bar as module
from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.datastore.progress import NoProgress
from retrieval_spec.errors import MissingDependency


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(monkeypatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(module, "_DELAY_S", 0.0)
    return terminal


def test_a_terminal_sees_every_stage_and_how_far_it_is(monkeypatch):
    terminal = on_a_terminal(monkeypatch)
    with progress_bar() as bar:
        bar.advance(3)  # before any stage: of nothing
        bar.start("encoding", 10, "B")
        bar.advance(10)
        bar.start("sorting", None, "tokens")
    shown = terminal.getvalue()
    assert "encoding: 100%" in shown
    assert shown.index("encoding") < shown.index("sorting")


def test_the_bar_is_ended_also_where_the_work_fails(monkeypatch):
    terminal = on_a_terminal(monkeypatch)

    def work() -> None:
        with progress_bar() as bar:
            bar.start("encoding", 10, "B")
            bar.advance(4)
            raise ValueError("no work")

    with pytest.raises(ValueError, match="no work"):
        work()
    assert " 40%" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")  # what is said next stands on a line of its own


def test_a_file_sees_nothing(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with progress_bar() as bar:
        assert isinstance(bar, NoProgress)
        bar.start("encoding", 10, "B")
        bar.advance(10)
    assert written.getvalue() == ""


def test_without_tqdm_the_remedy_is_named(monkeypatch):
    on_a_terminal(monkeypatch)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(
        MissingDependency, match=r"tqdm is not installed; pip install 'retrieval-spec\[server\]'"
    ):
        progress_bar().__enter__()
