"""Bounds of what a source may be opened with."""

from __future__ import annotations

from math import inf

from retrieval_spec.errors import InvalidRequest


def expect_range(name: str, value: float, lowest: float, highest: float = inf) -> None:
    """Checks a parameter; no bound holds for what is not a number.

    Raises:
        InvalidRequest: it is not within `lowest .. highest`.
    """
    if not lowest <= value <= highest:
        expected = f">= {lowest}" if highest == inf else f"{lowest} to {highest}"
        raise InvalidRequest(f"{name} is out of range", got=value, expected=expected)
