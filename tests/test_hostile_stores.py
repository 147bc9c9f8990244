"""Datastores that lie under valid checksums, by the hundred: refused, or drafted from without harm.

Each kind is altered where a hostile writer would, sealed again, opened, verified and asked, in a process of
its own with bounded memory: a signal would end only that, and say after which change.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from retrieval_spec.datastore.segments import open_segments, verify_segments
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.drafters.recycling import RecyclingDrafter
from retrieval_spec.errors import RetrievalSpecError
from tests.golden import GOLDEN, reseal
from tests.stores import write_corpus, write_dense
from tests.strategies import as_int32

VOCAB_SIZE = 61
MEMORY_BYTES = 3 << 30
DOCUMENTS = [[n % 50, 7, 8, 9, n % 7, 7, 8] * 3 for n in range(12)]
EXTREMES = (0, 1, -1, 2**15, 2**16 - 1, 2**31 - 1, -(2**31), 2**32 - 1, 2**62, VOCAB_SIZE)


def written(folder: Path, kind: str) -> Path:
    place = folder / kind
    if kind == "rows":
        shutil.copytree(GOLDEN / "rows", place)
    elif kind == "dense":
        pytest.importorskip("faiss", reason="FAISS is not installed")
        rng = np.random.default_rng(0)
        count = sum(len(document) - 1 for document in DOCUMENTS)
        write_dense(place, DOCUMENTS, VOCAB_SIZE, rng.normal(size=(count, 8)).astype(np.float32))
    else:
        write_corpus(place, DOCUMENTS, VOCAB_SIZE, np.uint16 if kind == "narrow" else np.int32)
    return place


def altered_column(data: bytes, dtype: str, chosen: random.Random) -> bytes:
    """Values that point elsewhere, in another order, said twice, or missing."""
    values = np.frombuffer(data, dtype).copy()
    for _ in range(chosen.randint(1, 3)):
        if not len(values):
            break
        at, kind = chosen.randrange(len(values)), chosen.randrange(5)
        if kind <= 1 and values.dtype.kind != "f":
            bits = 8 * values.itemsize
            number = chosen.choice((*EXTREMES, len(values), chosen.randrange(2 * len(values)))) % (1 << bits)
            values[at] = np.array([number], f"<u{values.itemsize}").view(dtype)[0]
        elif kind <= 1:
            values[at] = chosen.choice((np.nan, np.inf, -np.inf, 0.0, 1e38))
        elif kind == 2:
            values[at:] = values[at:][::-1].copy()
        elif kind == 3:
            values = np.concatenate([values[:at], values[at : at + 4], values[at:]])
        else:
            values = np.delete(values, slice(at, at + chosen.randint(1, 4)))
    return values.tobytes()


def alter(store: Path, chosen: random.Random) -> str:
    """Changes columns or facts of the store, seals it again, and says what was changed."""
    manifest = json.loads((store / "manifest.json").read_bytes())
    said = []
    for name in chosen.sample(sorted(manifest["files"]), chosen.choice((1, 1, 2))):
        entry = manifest["files"][name]
        data = altered_column((store / name).read_bytes(), entry["dtype"], chosen)
        (store / name).write_bytes(data)
        items = len(data) // np.dtype(entry["dtype"]).itemsize
        entry.update(bytes=len(data), shape=[items], sha256=hashlib.sha256(data).hexdigest())
        if entry["column"] in ("tokens", "documents") and chosen.random() < 0.9:
            manifest["num_" + entry["column"]] = items
        said.append(name)
    if chosen.random() < 0.2:
        key = chosen.choice(["vocab_size", "depth_tokens", "num_tokens", "num_documents", "separator"])
        manifest[key] = chosen.choice((*EXTREMES, manifest[key] + 1))
        said.append(key)
    (store / "manifest.json").write_bytes(reseal(json.dumps(manifest, indent=2).encode()))
    return ", ".join(said)


def ask(store: Path, kind: str, is_verified: bool) -> None:
    """Opens the store as a server does, and drafts from it; trees of a verified one keep the contract."""
    if kind == "dense":
        from retrieval_spec.drafters.dense import DenseDrafter

        drafter = DenseDrafter.open(VOCAB_SIZE, store)
    elif kind == "rows":
        drafter = RecyclingDrafter.open(open_segments(store).manifest.vocab_size, path=store)
    else:
        drafter = CorpusDrafter.open(VOCAB_SIZE, store)
    for context in ([7, 8], [9, 1, 7], [3], [49, 7, 8, 9], [60]):
        cursor = drafter.start(as_int32(context))
        tree = cursor.propose(Budget(16))
        if is_verified and kind != "rows":
            tree.check(VOCAB_SIZE)


def try_one(store: Path, kind: str) -> str:
    is_verified = True
    try:
        verify_segments(store)
    except RetrievalSpecError:
        is_verified = False
    try:
        ask(store, kind, is_verified)
    except RetrievalSpecError:
        return "refused" if not is_verified else "refused when opened"
    return "verified and drafted from" if is_verified else "refused by verify, drafted from all the same"


def try_all(original: Path, kind: str, seeds: range, report: int) -> None:
    """In the process of its own: writes a line before and after each change."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES + size_now(), -1))
    store = original.with_name("altered")
    for seed in seeds:
        shutil.copytree(original, store)
        os.write(report, f"{seed} {alter(store, random.Random(seed))}\n".encode())
        os.write(report, f"{try_one(store, kind)}\n".encode())
        shutil.rmtree(store)


def size_now() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")


def in_a_process(original: Path, kind: str, seeds: range) -> tuple[int, list[str]]:
    """How the process ended, and what it said."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            try_all(original, kind, seeds, writing)
            code = 0
        except BaseException as error:
            os.write(writing, f"raised {error!r}"[:500].encode())
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading) as file:
        said = file.read().splitlines()
    return os.waitpid(child, 0)[1], said


FEW = {"narrow": 80, "wide": 80, "dense": 40, "rows": 8}
MANY = {"narrow": 12_000, "wide": 12_000, "dense": 4_000, "rows": 500}


@pytest.mark.row("F2", "F3", "F7")
@pytest.mark.skipif(sys.platform != "linux", reason="bounds memory by /proc and RLIMIT_AS")
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *FEW.items(),
        *(pytest.param(*each, marks=[pytest.mark.long, pytest.mark.timeout(2_000)]) for each in MANY.items()),
    ],
)
def test_stores_that_lie_are_refused_or_do_no_harm(tmp_path, kind, count):
    original = written(tmp_path, kind)
    ask(original, kind, is_verified=True)  # compiles and imports, before the process is copied
    status, said = in_a_process(original, kind, range(count))
    assert status == 0, said[-2:]
    found = Counter(said[1::2])
    print(kind, dict(found))
    assert sum(found.values()) == count
    assert found["refused"] > count / 3
