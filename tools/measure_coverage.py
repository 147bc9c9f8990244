"""Measures what the default tests run of the package, and fails below the bars that `BARS` names.

python tools/measure_coverage.py          measures (two passes of tests), then reports
python tools/measure_coverage.py --last   reports what the last run measured

Processes that tests start are measured too, forked ones and those that a signal ends included. Compiled
kernels cannot be traced, so tests of kernels run a second time without the compiler: some thousand times
slower, hence with few examples (`tests/plain_kernels.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import coverage

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY / ".cache" / "coverage" / "data"
PACKAGE_LINES_PERCENT = 95.0
NUM_WORST = 10
TWO_WORKERS = ("-q", "-n", "2", "--dist", "loadfile")

BARS: dict[str, tuple[str, ...]] = {
    # What a session drafts and commits with, whatever its sources are.
    "engine": (
        "engine.py",
        "ahead.py",
        "budget.py",
        "feedback.py",
        "fusion.py",
        "ledger.py",
        "limits.py",
        "memory.py",
        "tree.py",
        "drafters/base.py",
        "drafters/guarded.py",
        "drafters/joint.py",
        "drafters/namespaces.py",
        "drafters/opening.py",
    ),
    # What writes a datastore or a history, and puts it in the place of the one before.
    "datastore commit path": (
        "shelf.py",
        "datastore/atomic.py",
        "datastore/compaction.py",
        "datastore/generation.py",
        "datastore/history_folder.py",
        "datastore/history_namespace.py",
        "datastore/history_segment.py",
        "datastore/locks.py",
        "datastore/manifest.py",
        "datastore/sealed_json.py",
        "datastore/segments.py",
        "datastore/store.py",
    ),
    "verifier": ("verifier/*.py",),
}
"""The modules in which every branch is taken by some test."""


@dataclass(frozen=True)
class Covered:
    """How much of one module, or of several, tests have run."""

    num_lines: int
    num_lines_run: int
    num_branches: int
    num_branches_taken: int

    @classmethod
    def of(cls, summaries: list[dict[str, Any]]) -> Covered:
        """Returns the sum of what coverage.py says of files."""
        names = ("num_statements", "covered_lines", "num_branches", "covered_branches")
        return cls(*(sum(summary[name] for summary in summaries) for name in names))

    @property
    def lines_percent(self) -> float:
        """Lines run, of those that can run."""
        return 100.0 * self.num_lines_run / max(self.num_lines, 1)

    @property
    def branches_percent(self) -> float:
        """Branches taken, of those that there are; a line that never ran takes none."""
        return 100.0 * self.num_branches_taken / max(self.num_branches, 1)

    def __str__(self) -> str:
        return (
            f"lines {self.lines_percent:6.2f} % ({self.num_lines_run:,}/{self.num_lines:,})   "
            f"branches {self.branches_percent:6.2f} % ({self.num_branches_taken:,}/{self.num_branches:,})"
        )


def run_tests(*arguments: str, **environment: str) -> bool:
    """Runs pytest under coverage.py, adds to the data, and returns whether all passed."""
    started_s = time.monotonic()
    command = [sys.executable, "-m", "coverage", "run", "-m", "pytest", *TWO_WORKERS, *arguments]
    variables = {**os.environ, "COVERAGE_FILE": str(DATA), **environment}
    returncode = subprocess.run(command, cwd=REPOSITORY, env=variables).returncode
    print(
        f"{' '.join(command[1:])}: exit code {returncode}, {time.monotonic() - started_s:.0f} s", flush=True
    )
    return returncode == 0


def measure() -> bool:
    """Runs both passes; returns whether all tests passed."""
    DATA.parent.mkdir(parents=True, exist_ok=True)
    for old in DATA.parent.glob(f"{DATA.name}*"):
        old.unlink()
    have_passed = run_tests()
    return run_tests("-p", "tests.plain_kernels", NUMBA_DISABLE_JIT="1") and have_passed


def summaries() -> dict[str, dict[str, Any]]:
    """Returns what coverage.py says of each module, by its path in the package."""
    data = coverage.Coverage(data_file=str(DATA), config_file=str(REPOSITORY / "pyproject.toml"))
    if any(DATA.parent.glob(f"{DATA.name}.*")):
        data.combine()
        data.save()
    else:
        data.load()
    report = DATA.with_name("report.json")
    data.json_report(outfile=str(report))
    files = json.loads(report.read_text(encoding="utf-8"))["files"]
    return {
        name.removeprefix("retrieval_spec/"): file
        for name, file in files.items()
        if file["summary"]["num_statements"]
    }


def missing_of(file: dict[str, Any]) -> str:
    """Returns where tests have not been: lines, and branches as FROM->TO (negative: the way out)."""
    branches = [
        f"{start}->{end}" for start, end in file["missing_branches"] if start in file["executed_lines"]
    ]
    return " ".join([*map(str, file["missing_lines"]), *branches])


def report(files: dict[str, dict[str, Any]]) -> list[str]:
    """Prints the figures, and returns the bars that are missed."""
    package = Covered.of([file["summary"] for file in files.values()])
    print(f"package: {package}")
    worst = sorted(files, key=lambda name: Covered.of([files[name]["summary"]]).lines_percent)[:NUM_WORST]
    for name in worst:
        print(f"  {Covered.of([files[name]['summary']])}   {name}")
    missed = []
    if package.lines_percent < PACKAGE_LINES_PERCENT:
        missed.append(f"lines of the package: {package.lines_percent:.2f} % < {PACKAGE_LINES_PERCENT} %")
    for bar, patterns in BARS.items():
        named = {
            name: file for name, file in files.items() if any(fnmatch(name, pattern) for pattern in patterns)
        }
        covered = Covered.of([file["summary"] for file in named.values()])
        print(f"{bar}: {covered}")
        if covered.num_branches_taken < covered.num_branches or covered.num_lines_run < covered.num_lines:
            missed.append(f"branches of the {bar}: {covered.branches_percent:.2f} % < 100 %")
            missed += [f"  {name}: {gaps}" for name, file in named.items() if (gaps := missing_of(file))]
    return missed


def main() -> int:
    """Runs the command; exit code 1 if a test failed or a bar was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--last", action="store_true", help="report what the last run measured")
    have_passed = True if parser.parse_args().last else measure()
    missed = report(summaries())
    print("\n".join(missed or ["every bar is held"]))
    return 0 if have_passed and not missed else 1


if __name__ == "__main__":
    sys.exit(main())
