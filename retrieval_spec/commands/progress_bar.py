"""A progress bar on the terminal for whatever reports `Progress`; silent when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.errors import MissingDependency

_DELAY_S = 0.5


class ProgressBar:
    """Shows one bar for each stage, and leaves no trace of stages shorter than a glance."""

    def __init__(self) -> None:
        try:
            from tqdm import tqdm
        except ImportError as error:
            raise MissingDependency(
                "tqdm is not installed", remedy="pip install 'retrieval-spec[server]'"
            ) from error
        self._tqdm = tqdm
        self._bar: Any = None

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """Ends the bar of the stage before and begins the next one."""
        self.close()
        self._bar = self._tqdm(
            total=total,
            desc=stage,
            unit=unit,
            unit_scale=True,
            delay=_DELAY_S,
        )

    def advance(self, amount: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(amount)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yields a `Progress` that draws on standard error, and tidies the terminal afterwards."""
    if not sys.stderr.isatty():
        yield NoProgress()
        return
    bar = ProgressBar()
    try:
        yield bar
    finally:
        bar.close()
