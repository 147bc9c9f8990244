#!/usr/bin/env python3
"""What a flood of one client costs another one's steps: their time while it comes in, by their time in quiet.

A real server process, a client that floods it, and one that drafts from a third process, each step a call.
Quiet and flooded windows take turns; shown are medians over the windows. Exit code 1 where the bar is missed.

    tools/bench_floods.py
    tools/bench_floods.py --kind opens --count 10000 --windows 1
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.floods import KINDS, flood  # noqa: E402
from tests.test_hostile_clients import Script, health, served, times  # noqa: E402

BAR = 3.0
"""The slowest step in a hundred may take so many times as long, unless the flood itself is of valid steps."""

COUNTS = {"mutated": 500, "opens": 700, "connections": 25, "steps": 2_000}
"""Requests of a window; connections of each kind."""

QUIET_STEPS = 1_500
FEWEST_STEPS = 1_000


def measure(kind: str, count: int, num_windows: int) -> dict[str, Any]:
    """Returns what is printed of one kind."""
    with (
        tempfile.TemporaryDirectory(prefix="floods-") as folder,
        served(Path(folder), "capped") as (_, stub, channel),
        flood(kind, f"unix:{folder}/s.sock") as flooding,
    ):
        script = Script(stub, 0, "mine")
        times(script, 100)
        quiet, flooded, said = [], [], {}
        for _ in range(num_windows):
            quiet.append(np.percentile(times(script, QUIET_STEPS), [50, 99]))
            flooding.begin(count)
            taken_ms: list[float] = []
            while not flooding.has_ended() or len(taken_ms) < FEWEST_STEPS:
                taken_ms += times(script, 10)
            flooded.append(np.percentile(taken_ms, [50, 99]))
            said = flooding.end()
        is_healthy = health(channel) == 1
    return {"kind": kind, "quiet": quiet, "flooded": flooded, "said": said, "healthy": is_healthy}


def row(found: dict[str, Any]) -> tuple[str, float]:
    """Returns a line of the table, and the ratio of the slowest steps."""
    quiet, flooded = [
        [statistics.median(window[part] for window in found[name]) for part in (0, 1)]
        for name in ("quiet", "flooded")
    ]
    ratio = flooded[1] / quiet[1]
    cells = [*quiet, *flooded, flooded[0] / quiet[0], ratio]
    told = ", ".join(f"{count} {code}" for code, count in found["said"].items())
    return f"| {found['kind']} | {' | '.join(f'{cell:.2f}' for cell in cells)} | {told} |", ratio


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="default: all")
    parser.add_argument("--count", type=int, help="requests in a window, or connections of each kind")
    parser.add_argument("--windows", type=int, default=3)
    arguments = parser.parse_args()
    print("| flood | quiet median, ms | p99 | flooded median, ms | p99 | medians | p99s | last window |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    is_met = True
    for kind in arguments.kind or KINDS:
        found = measure(kind, arguments.count or COUNTS[kind], arguments.windows)
        line, ratio = row(found)
        print(line, flush=True)
        is_met = is_met and found["healthy"] and (ratio <= BAR or kind == "steps")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
