"""A disk that is full or fails, at any call of a writer, once or from then on: a typed error, whole stores,
no descriptor left open, and the next writer goes on as if nothing had been.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from contextlib import suppress

import pytest

from retrieval_spec.datastore import atomic
from retrieval_spec.errors import DatastoreError
from tests.simulated_disk import tree_of
from tests.test_power_loss import WORKS, append, begin, found_at

SEAMS = ("open", "write", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir")
MOST_CALLS = 60
LONG = [pytest.mark.long, pytest.mark.timeout(1_200)]


def failing(patch: pytest.MonkeyPatch, seam: str, first: int, stays: bool, code: int):
    """Lets os.<seam> fail from this call on, or at this call alone; returns how often it was called."""
    real, count = getattr(os, seam), 0

    def call(*arguments, **options):
        nonlocal count
        count += 1
        if count == first or (stays and count > first):
            raise OSError(code, os.strerror(code))
        return real(*arguments, **options)

    patch.setattr(os, seam, call)
    return lambda: count


def num_descriptors(folder) -> int:
    """Those below a folder: threads of other tests may open and close some elsewhere."""
    targets = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile
            targets.append(os.readlink(f"/proc/self/fd/{number}"))
    return sum(target.startswith(str(folder)) for target in targets)


@pytest.mark.row("D3")
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
@pytest.mark.parametrize("stays", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize(
    ("name", "codes"),
    [
        *((name, [errno.ENOSPC]) for name in ("replace", "append")),
        *(
            pytest.param(name, [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EDQUOT], marks=LONG)
            for name in WORKS
        ),
    ],
)
def test_a_failing_disk_leaves_the_old_or_the_new_datastore(tmp_path, name, codes, stays):
    work, outcomes = WORKS[name], Counter()
    for number, (seam, code) in enumerate((seam, code) for code in codes for seam in SEAMS):
        for first in range(1, MOST_CALLS):
            folder = tmp_path / f"{number}-{first}"
            folder.mkdir()
            place = folder / "store"
            begin(place, work.begins_with)
            before = num_descriptors(tmp_path)
            with pytest.MonkeyPatch.context() as patch:
                calls = failing(patch, seam, first, stays, code)
                try:
                    work.do(place)
                except DatastoreError:
                    outcomes["refused"] += 1
            assert num_descriptors(tmp_path) == before
            if calls() < first:
                break
            found = found_at(place)
            assert found in (work.begins_with, tuple(work.gives)), (seam, first)
            outcomes["old" if found == work.begins_with else "new"] += 1
            go_on(place, work, found)
    print(name, dict(outcomes))
    assert outcomes["refused"] >= 10 * len(codes)
    assert outcomes["old"] >= 10 * len(codes)


def go_on(place, work, found) -> None:
    """The disk works again: the next writer does its work, and nothing of the failed one is left."""
    if found == work.begins_with:
        work.do(place)
        assert found_at(place) == tuple(work.gives)
    elif work.do is not append:
        atomic.sweep(place)
    assert list(tree_of(place.parent)) == ["store"]
    assert not [path for path in place.rglob(".*") if found == work.begins_with]
