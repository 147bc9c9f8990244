"""Plants bugs into a copy of the package, one at a time, and looks whether the tests notice: docs/mutants.md.

python tools/mutation_check.py [--area AREA] [--only NAME] [--fresh]

What was found out is kept in a file, and is found out again only where a bug, the file that it is planted
into or one of its tests has changed. The exit status is 1 if fewer than 95 % are noticed or a survivor is not
explained, 2 if a bug cannot be planted or its tests fail without it, and 3 if time was up before.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

import pytest
from planted_bugs import BUGS, Bug, CannotPlant, read_bugs

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".cache" / "mutants.json"
ENOUGH = 0.95

TEST_S, MAX_S = 60, 400.0
"""A bug may make one test hang, or all of them: then it is noticed too."""
TIME_WAS_UP, CRASHED = "time was up", "the tests crashed"
_ENDED_EARLY = frozenset([TIME_WAS_UP, CRASHED])
_TESTS_FAILED = 1


@dataclass(frozen=True)
class Result:
    """What came of one bug.

    Attributes:
        outcome: killed, survived, or broken: where not even an import goes well nothing was tried.
        by: the first test that failed, or that time was up, or that all of them crashed.
        seconds: that it took.
        key: what it depends on.
    """

    outcome: str
    by: str
    seconds: float
    key: str


class Workplace:
    """A copy of the sources in which bugs are planted and tests run."""

    def __init__(self, root: Path, copy: Path) -> None:
        self._root = root
        self._copy = copy
        for name in _files_of(root):
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, target)

    @contextmanager
    def with_bug(self, bug: Bug) -> Iterator[None]:
        """Plants a bug, and takes it out again."""
        path = self._copy / bug.file
        right = path.read_text()
        path.write_text(bug.planted(right))
        try:
            yield
        finally:
            path.write_text(right)

    def run(
        self, tests: Sequence[str], plain: bool, *, stop_at_first: bool = False
    ) -> tuple[str, list[str], float]:
        """Runs tests; returns `passed`, `failed` or `broken`, which failed, and the seconds that it took."""
        arguments = f"-q --tb=no -p no:cacheprovider -o timeout={TEST_S}".split() + ["-x"][:stop_at_first]
        arguments += ["-W", _IMPORTED_BEFORE, *_PLAIN_OPTIONS[: 2 * plain], *tests]
        began_s = time.monotonic()
        with tempfile.TemporaryFile("w+") as said:
            pid = os.fork()
            if pid == 0:
                self._become_pytest(arguments, plain, said.fileno())
            code = _end_of(pid, began_s + MAX_S)
            said.seek(0)
            text = said.read()
        seconds = time.monotonic() - began_s
        if code is None or code < 0:
            return "failed", [TIME_WAS_UP if code is None else CRASHED], seconds
        outcome = {0: "passed", _TESTS_FAILED: "failed"}.get(code, "broken")
        return outcome, _failures(text, code), seconds

    def _become_pytest(self, arguments: list[str], plain: bool, said: int) -> NoReturn:
        """Runs in a fork, which has imported what is slow to import and does not change."""
        code = 3
        try:
            os.setsid()
            os.dup2(said, 1)
            os.dup2(said, 2)
            os.chdir(self._copy)
            data = str(self._root.parent / "shared" / "data")
            os.environ.setdefault("RETRIEVAL_SPEC_DATA", data)
            os.environ.update(PYTHONPATH=str(self._copy), **({"NUMBA_DISABLE_JIT": "1"} if plain else {}))
            if plain and "numba" in sys.modules:
                sys.modules["numba"].core.config.reload_config()
            sys.path.insert(0, str(self._copy))
            sys.dont_write_bytecode = True
            _take_the_first_example()
            sys.argv = ["pytest", *arguments]
            code = int(pytest.main(arguments))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)


def _take_the_first_example() -> None:
    """Lets hypothesis end at the first example that fails: nobody reads a smaller one here."""
    with suppress(ImportError):
        hypothesis = importlib.import_module("hypothesis")
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("first", phases=phases)
        hypothesis.settings.load_profile("first")


def import_what_is_slow(bugs: Sequence[Bug]) -> None:
    """Imports what tests need and bugs leave alone, for all of them: nothing of the package itself."""
    names = ["numpy", "numba", "grpc", "google.protobuf.message"]
    if any(bug.area == "verifier" for bug in bugs):
        names += ["torch", "transformers.generation.utils", "transformers.models.llama.modeling_llama"]
    for name in names:
        with suppress(ImportError):
            importlib.import_module(name)


_IMPORTED_BEFORE = "ignore:Module already imported:pytest.PytestAssertRewriteWarning"
# In plain Python the unsigned words of the arenas are numpy's, which warn where compiled ones wrap around.
_PLAIN_OPTIONS = ("-W", "ignore::RuntimeWarning")


def _files_of(root: Path) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
        names = listed.splitlines()
    except (OSError, subprocess.CalledProcessError):  # no repository: all that is there
        names = [str(path.relative_to(root)) for path in root.rglob("*")]
    return [name for name in names if name and (root / name).is_file()]


def _end_of(pid: int, deadline_s: float) -> int | None:
    """Returns with which code a fork ended, or None if time was up; ends the servers that it started."""
    ended = 0
    while not ended and time.monotonic() < deadline_s:
        time.sleep(0.02)
        ended, status = os.waitpid(pid, os.WNOHANG)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not ended:
        os.waitpid(pid, 0)
        return None
    return os.waitstatus_to_exitcode(status)


def _failures(text: str, code: int) -> list[str]:
    found = re.findall(r"^(?:FAILED|ERROR) (\S+?(?:\[.*?\])?)(?: - .*)?$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if line.strip()]
    last = f"pytest ended with {code}: {lines[-1] if lines else 'nothing said'}"[:200]
    return found if found or code == 0 else [last]


class Check:
    """Tries bugs and keeps what came of them.

    Args:
        sources: in which bugs are planted.
        results: where it is kept; what is there and still holds is not tried again.
        max_s: after so long no further one is begun.
    """

    def __init__(self, sources: Path, results: Path, max_s: float = float("inf")) -> None:
        self._sources = sources
        self._path = results
        self._end_s = time.monotonic() + max_s
        self._known = json.loads(results.read_text()) if results.is_file() else {}

    def run(self, bugs: Sequence[Bug], workplace: Workplace) -> dict[Bug, Result]:
        """Returns a result for every bug that there was time for, told as it comes."""
        found = {}
        for number, bug in enumerate(bugs, 1):
            result = self._known_result(bug)
            if result is None and time.monotonic() < self._end_s:
                result = self._tried(bug, workplace)
            if result is None:
                continue
            found[bug] = result
            told = f"{result.outcome:8} {bug.area}/{bug.name}  {result.seconds:.1f} s  {result.by}"
            print(f"[{number}/{len(bugs)}] {told}", flush=True)
        return self._confirmed(found, workplace)

    def _known_result(self, bug: Bug) -> Result | None:
        known = self._known.get(f"{bug.area}/{bug.name}")
        if known is None or known["key"] != self._key(bug) or known["outcome"] == "broken":
            return None
        return Result(**known)

    def _tried(self, bug: Bug, workplace: Workplace) -> Result:
        key = self._key(bug)
        with workplace.with_bug(bug):
            outcome, failed, seconds = workplace.run(bug.tests, bug.plain, stop_at_first=True)
        outcome = {"passed": "survived", "failed": "killed"}.get(outcome, outcome)
        by = failed[0] if failed else ""
        result = Result(outcome, by, round(seconds, 1), key)
        self._keep(f"{bug.area}/{bug.name}", asdict(result))
        return result

    def _confirmed(self, found: dict[Bug, Result], workplace: Workplace) -> dict[Bug, Result]:
        """Returns the results, with those as broken whose tests fail without a bug too."""
        failing: set[tuple[str, bool]] = set()
        for plain in (False, True):
            killers = {
                test: self._digest([test.partition("::")[0]])
                for bug, result in found.items()
                if result.outcome == "killed" and bug.plain == plain
                for test in (bug.tests if result.by in _ENDED_EARLY else (result.by,))
            }
            name = f"passed without a bug, plain={plain}"
            passed = self._known.get(name, {})
            new = sorted(test for test, key in killers.items() if passed.get(test) != key)
            if not new:
                continue
            outcome, failed, _ = workplace.run(new, plain)
            is_known = outcome != "broken" and _ENDED_EARLY.isdisjoint(failed)
            failing |= {(test, plain) for test in (failed if is_known else new)}
            good = {test: killers[test] for test in new if (test, plain) not in failing}
            self._keep(name, {**passed, **good})
        return {
            bug: replace(result, outcome="broken", by=f"{result.by} fails without it")
            if result.outcome == "killed"
            and any((test, bug.plain) in failing for test in (*bug.tests, result.by))
            else result
            for bug, result in found.items()
        }

    def _key(self, bug: Bug) -> str:
        files = [bug.file, *(test.partition("::")[0] for test in bug.tests)]
        return self._digest(files, repr((bug.old, bug.new, bug.tests, bug.plain)))

    def _digest(self, files: Sequence[str], more: str = "") -> str:
        digest = hashlib.sha256(more.encode())
        for name in files:
            digest.update((self._sources / name).read_bytes())
        return digest.hexdigest()[:16]

    def _keep(self, name: str, known: dict[str, object]) -> None:
        self._known[name] = known
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".tmp")
        draft.write_text(json.dumps(self._known, indent=1, sort_keys=True) + "\n")
        draft.replace(self._path)


def summary(found: dict[Bug, Result]) -> str:
    """Returns a table of areas and, below it, what survived."""
    lines = [f"{'area':<12}{'planted':>8}{'killed':>8}{'share':>8}"]
    for area in [*sorted({bug.area for bug in found}), ""]:
        outcomes = [result.outcome for bug, result in found.items() if area in ("", bug.area)]
        killed = outcomes.count("killed")
        lines.append(
            f"{area or 'all':<12}{len(outcomes):>8}{killed:>8}{killed / max(len(outcomes), 1):>8.1%}"
        )
    for bug, result in found.items():
        if result.outcome == "survived":
            lines.append(f"survived: {bug.area}/{bug.name}: {bug.survives or 'UNEXPLAINED: ' + bug.harm}")
        elif result.outcome == "broken":
            lines.append(f"broken: {bug.area}/{bug.name}: {result.by}")
    return "\n".join(lines)


def status_of(found: dict[Bug, Result]) -> int:
    """Returns 0 if enough was noticed and the rest is explained."""
    outcomes = [result.outcome for result in found.values()]
    if "broken" in outcomes:
        return 2
    is_explained = all(bug.survives for bug, result in found.items() if result.outcome == "survived")
    return 0 if is_explained and outcomes.count("killed") >= ENOUGH * len(outcomes) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check as its arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--area", action="append", help="only these areas")
    parser.add_argument("--only", action="append", help="only bugs of these names")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--fresh", action="store_true", help="try all again, whatever is known")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin no further one after so long"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="the sources")
    parser.add_argument("--bugs", type=Path, default=BUGS, help="the folder of lists")
    options = parser.parse_args(arguments)
    if options.fresh:
        options.results.unlink(missing_ok=True)
    bugs = [
        bug
        for bug in read_bugs(options.bugs)
        if bug.area in (options.area or [bug.area]) and bug.name in (options.only or [bug.name])
    ]
    try:
        for bug in bugs:
            bug.planted((options.root / bug.file).read_text())
    except CannotPlant as error:
        print(error, file=sys.stderr)
        return 2
    if any(bug.file.startswith("retrieval_spec/") for bug in bugs):
        import_what_is_slow(bugs)
    with tempfile.TemporaryDirectory(prefix="mutants-") as copy:
        workplace = Workplace(options.root, Path(copy))
        found = Check(Path(copy), options.results, 60 * options.minutes).run(bugs, workplace)
    print(summary(found))
    return status_of(found) if len(found) == len(bugs) else 3


if __name__ == "__main__":
    sys.exit(main())
