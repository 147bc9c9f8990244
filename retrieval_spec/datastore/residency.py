"""How much of a datastore is mapped, and how much of that lies in memory now, as the system tells it."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.store import Datastore

_SMAPS = "/proc/self/smaps"

Column = NDArray[Any]


class Residency(NamedTuple):
    """Bytes of columns.

    Attributes:
        mapped: that are mapped from files.
        resident: that this process has in memory, mapped or its own; None where the system does not say.
    """

    mapped: int
    resident: int | None


class Retired:
    """What was replaced, for as long as somebody still uses it."""

    def __init__(self) -> None:
        self._columns: list[weakref.ref[Column]] = []

    def add(self, store: Datastore) -> None:
        """Remembers a segment that is no longer drafted from, without keeping it."""
        self._columns = [known for known in self._columns if known() is not None]
        self._columns += [weakref.ref(owner_of(column)) for column in store.columns.values()]

    @property
    def num_bytes(self) -> int:
        """Bytes that somebody still holds."""
        held = [known() for known in self._columns]
        return sum(column.nbytes for column in held if column is not None)


def owner_of(column: Column) -> Column:
    """Returns the array that all views of a column keep alive, as long as any of them lives."""
    while isinstance(column.base, np.ndarray):
        column = column.base
    return column


def residency(stores: Iterable[Datastore]) -> Residency:
    """Returns what the columns of open segments take of the memory."""
    columns = [column for store in stores for column in store.columns.values() if column.nbytes]
    mapped = [column for column in columns if owner_of(column).base is not None]
    own = sum(column.nbytes for column in columns) - sum(column.nbytes for column in mapped)
    in_memory = _resident_bytes([column.ctypes.data for column in mapped])
    return Residency(sum(column.nbytes for column in mapped), None if in_memory is None else own + in_memory)


def _resident_bytes(addresses: list[int]) -> int | None:
    """Returns bytes in memory of the mappings that lie at these addresses."""
    try:
        with open(_SMAPS, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:  # no Linux
        return None
    starts = sorted(addresses)
    total, is_ours = 0, False
    for line in lines:
        name = line.partition(" ")[0]
        if not name.endswith(":"):
            first, _, last = name.partition("-")
            is_ours = bisect_right(starts, int(last, 16) - 1) > bisect_right(starts, int(first, 16) - 1)
        elif is_ours and name == "Rss:":
            total += int(line.split()[1]) << 10
    return total
