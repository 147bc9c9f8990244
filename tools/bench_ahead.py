"""Measures drafting ahead: how often an outcome is foreseen, and what a step waits then and otherwise.

    OMP_WAIT_POLICY=PASSIVE python tools/bench_ahead.py TRACES_DIR [--outcomes 8] [--items 6] [--json FILE]

Replays recorded outputs (`tools/replays.py`), of every family so many. Shares of foreseen steps come from an
engine in this process. Waits come from a server process, of two clients in turn, one with drafts ahead and
one without, so that each step is asked twice; between questions the clients sleep as long as a target runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from bench_rows import Row, percentiles, print_rows, write_json  # noqa: E402
from replays import VOCAB_SIZE, Ids, traces  # noqa: E402

from retrieval_spec.client import DraftClient  # noqa: E402
from retrieval_spec.engine import Engine  # noqa: E402
from retrieval_spec.replay import accepted_path  # noqa: E402
from tests.service_process import server_process  # noqa: E402

MAX_NODES = 16
MAX_OUTPUT_TOKENS = 250
OUTCOME_COUNTS = (1, 2, 4, 8, 16)


class Wait(NamedTuple):
    """One step, asked twice.

    Attributes:
        foreseen: whether its answer was drafted ahead.
        ahead_us: what the client with drafts ahead waited.
        plain_us: what the other one waited.
        empty_us: an empty call after it, on the other one's stream.
        is_same: whether both got the same tree.
    """

    foreseen: bool
    ahead_us: float
    plain_us: float
    empty_us: float
    is_same: bool


def foreseen_shares(items: Iterable[tuple[Ids, Ids]]) -> tuple[float, list[float]]:
    """Returns the mean acceptance length and the share of steps foreseen, by outcomes drafted for."""
    engine = Engine(VOCAB_SIZE)
    ranks, num_tokens = [], 0
    for prompt, output in items:
        session, at = engine.open_session(prompt), 0
        while at < output.size:
            tree = session.draft(MAX_NODES)
            news = output[at : at + len(accepted_path(tree, output[at:])) + 1]
            outcomes = [outcome.tolist() for outcome in session.look_ahead().outcomes(tree, 16)]
            ranks.append(outcomes.index(news.tolist()) if news.tolist() in outcomes else 16)
            session.commit(news)
            at += news.size
            num_tokens += news.size
        session.close()
    return num_tokens / len(ranks), [float(np.mean(np.array(ranks) < count)) for count in OUTCOME_COUNTS]


def bench_foreseen(folder: Path, num_items: int) -> list[Row]:
    """Measures how often outcomes come true, for each family."""
    rows = []
    for path in sorted(folder.glob("*.jsonl")):
        length, shares = foreseen_shares(some(path, num_items))
        told = ", ".join(
            f"{share:.2f} of {count}" for share, count in zip(shares, OUTCOME_COUNTS, strict=True)
        )
        rows.append(Row(f"{path.stem}: {told}", length, "tokens/step"))
    return rows


def some(path: Path, num_items: int) -> Iterator[tuple[Ids, Ids]]:
    """Yields the first items of a family."""
    for item, _ in zip(traces(path, None, MAX_OUTPUT_TOKENS), range(num_items), strict=False):
        yield item


def timed_us(work: object) -> tuple[float, object]:
    """Returns how long a call takes, and what it returns."""
    began = time.perf_counter()
    result = work()  # type: ignore[operator]
    return (time.perf_counter() - began) * 1e6, result


def waits(ahead: DraftClient, plain: DraftClient, prompt: Ids, output: Ids, pass_s: float) -> Iterator[Wait]:
    """Yields the steps of one output."""
    sessions = ahead.open_session(prompt, "ahead"), plain.open_session(prompt, "plain")
    at = turn = 0
    while at < output.size:
        took: dict[int, tuple[float, object]] = {}
        num_foreseen = ahead.counters.foreseen
        for index in (0, 1) if turn % 2 else (1, 0):
            time.sleep(pass_s)
            took[index] = timed_us(lambda: sessions[index].draft(MAX_NODES))  # noqa: B023
        time.sleep(pass_s)
        (ahead_us, tree), (plain_us, other) = took[0], took[1]
        foreseen = ahead.counters.foreseen > num_foreseen
        yield Wait(foreseen, ahead_us, plain_us, plain.ping() * 1e6, tree == other)
        news = output[at : at + len(accepted_path(tree, output[at:])) + 1]  # type: ignore[arg-type]
        for session in sessions:
            session.commit(news.tolist())
        at, turn = at + news.size, turn + 1
    for session in sessions:
        session.close()


def bench_waits(folder: Path, num_outcomes: int, num_items: int, pass_s: float) -> list[Row]:
    """Measures waits of foreseen steps and of others."""
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        server = server_process(f"unix:{scratch}/s.sock", f"default@{VOCAB_SIZE}")
        _, address = stack.enter_context(server)
        ahead = DraftClient(address, timeout_s=1.0, ahead_outcomes=num_outcomes)
        plain = DraftClient(address, timeout_s=1.0)
        found = [
            wait
            for path in sorted(folder.glob("*.jsonl"))
            for prompt, output in some(path, num_items)
            if prompt.size <= 8_192
            for wait in waits(ahead, plain, prompt, output, pass_s)
        ]
        ahead.close()
        plain.close()
    hits, misses = [[wait for wait in found if wait.foreseen is kind] for kind in (True, False)]
    empty = percentiles([wait.empty_us for wait in found])[0]
    hit, plain_hit = (percentiles(column)[0] for column in list(zip(*hits, strict=True))[1:3])
    (miss, miss_99), (plain_miss, plain_99) = (
        percentiles(column) for column in list(zip(*misses, strict=True))[1:3]
    )
    return [
        Row("empty call, p50", empty, "us"),
        Row(f"steps foreseen, {num_outcomes} outcomes, of {len(found):,}", len(hits) / len(found), "share"),
        Row("wait of a foreseen step, p50", hit, "us"),
        Row("wait of a foreseen step / empty call, p50", hit / empty, "x", 0.3),
        Row("the same step without drafts ahead / empty call, p50", plain_hit / empty, "x"),
        Row("wait of another step / the same without drafts ahead, p50", miss / plain_miss, "x", 1.05),
        Row("the same, p99", miss_99 / plain_99, "x"),
        Row("trees that differ", sum(not wait.is_same for wait in found), "trees", 0),
    ]


def main() -> int:
    """Prints the table; exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", type=Path, metavar="TRACES_DIR", help="a folder of FAMILY.jsonl")
    parser.add_argument("--outcomes", type=int, default=8, help="that the client asks for")
    parser.add_argument("--items", type=int, default=6, help="of each family, for the shares")
    parser.add_argument("--timed-items", type=int, default=1, help="of each family, for the waits")
    parser.add_argument("--pass-ms", type=float, default=10.0, help="that a target takes")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows as JSON")
    arguments = parser.parse_args()
    rows = bench_foreseen(arguments.traces, arguments.items) if arguments.items else []
    if rows:
        print_rows(rows)
    if arguments.timed_items:
        timed = bench_waits(
            arguments.traces, arguments.outcomes, arguments.timed_items, arguments.pass_ms / 1e3
        )
        print_rows(timed)
        rows += timed
    if arguments.json:
        write_json(arguments.json, rows)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
