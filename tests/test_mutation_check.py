"""Bugs that can be planted, and a check that tells those that tests notice from those that they do not."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

TOOL = REPOSITORY / "tools" / "mutation_check.py"
sys.path.insert(0, str(TOOL.parent))


@pytest.fixture(scope="module")
def tool():
    return importlib.import_module("mutation_check")


def test_every_bug_can_be_planted_and_names_tests_that_are_there(tool):
    bugs = tool.read_bugs(tool.BUGS)
    assert Counter(bug.name for bug in bugs).most_common(1)[0][1] == 1
    for bug in bugs:
        bug.planted((REPOSITORY / bug.file).read_text())
        assert bug.harm
        for test in bug.tests:
            file, _, name = test.partition("::")
            assert f"def {name}" in (REPOSITORY / file).read_text()


def test_all_areas_have_as_many_as_they_need(tool):
    areas = Counter(bug.area for bug in tool.read_bugs(tool.BUGS))
    least = {"verifier": 16, "fusion": 8, "structures": 14, "commit": 14, "protocol": 14, "tenancy": 8}
    assert areas.keys() == least.keys()
    assert all(areas[area] >= number for area, number in least.items())


SOURCE = "def last(values):\n    return values[-1]\n\n\ndef first(values):\n    return values[0]\n"
TESTS = "from ends import first, last\n\n\ndef test_last():\n    assert last([1, 2]) == 2\n"
BUG = """
[[bug]]
name = "{name}"
file = "ends.py"
old = "{old}"
new = "{new}"
harm = "Another end."
tests = ["test_ends.py"]
"""


def project(folder: Path, *bugs: tuple[str, str, str], tests: str = TESTS) -> list[str]:
    """Makes a small project with a list of bugs; returns what to tell the check."""
    (folder / "sources").mkdir()
    (folder / "bugs").mkdir()
    (folder / "sources" / "ends.py").write_text(SOURCE)
    (folder / "sources" / "test_ends.py").write_text(tests)
    text = "".join(BUG.format(name=name, old=old, new=new) for name, old, new in bugs)
    (folder / "bugs" / "area.toml").write_text(text)
    places = {"root": "sources", "bugs": "bugs", "results": "results.json"}
    return [f"--{name}={folder / place}" for name, place in places.items()]


def check(arguments: list[str]) -> tuple[int, str]:
    """Runs the check in a process of its own; returns how it ended and what it said."""
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # quicker
    command = [sys.executable, str(TOOL), *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert not ended.stderr
    return ended.returncode, ended.stdout


def test_a_bug_is_killed_and_a_harmless_change_survives_and_neither_is_tried_twice(tmp_path):
    changes = [("wrong_end", "values[-1]", "values[0]"), ("harmless", "values[0]", "values[+0]")]
    arguments = project(tmp_path, *changes)
    code, said = check(arguments)
    assert code == 1
    assert "killed   area/wrong_end" in said
    assert "test_ends.py::test_last" in said
    assert "survived: area/harmless: UNEXPLAINED: Another end." in said
    assert "area               2       1   50.0%" in said
    assert (tmp_path / "sources" / "ends.py").read_text() == SOURCE
    kept = (tmp_path / "results.json").stat()
    assert check([*arguments, "--only=wrong_end"])[0] == 0
    assert (tmp_path / "results.json").stat().st_mtime_ns == kept.st_mtime_ns


def test_tests_that_fail_without_a_bug_notice_none(tmp_path):
    arguments = project(
        tmp_path, ("wrong", "values[-1]", "values[0]"), tests="def test_it():\n    assert 0\n"
    )
    code, said = check(arguments)
    assert code == 2
    assert "broken: area/wrong: test_ends.py::test_it fails without it" in said


def test_tests_that_crash_notice_a_bug(tmp_path):
    tests = "import os\n\nfrom ends import last\n\n\ndef test_it():\n    last([1, 2]) == 2 or os.abort()\n"
    code, said = check(project(tmp_path, ("wrong", "values[-1]", "values[0]"), tests=tests))
    assert code == 0
    assert "killed   area/wrong" in said


def test_where_tests_crash_without_a_bug_none_of_them_is_known_to_pass_without_one(tmp_path):
    tests = TESTS + "\n\ndef test_more():\n    import os\n\n    os.abort()\n"
    changes = [("wrong_end", "values[-1]", "values[0]"), ("harmless", "values[0]", "values[+0]")]
    code, said = check(project(tmp_path, *changes, tests=tests))
    assert "test_ends.py::test_last" in said
    assert code == 2
    assert "broken: area/wrong_end" in said
    assert "broken: area/harmless" in said


@pytest.mark.parametrize("old", ["values[1]", "values", "return values[-1]", "values[0]"])
def test_a_bug_that_does_not_fit_its_source_is_refused(tool, tmp_path, capsys, old):
    new = "return return" if old.startswith("return") else "values[0]"
    assert tool.main(project(tmp_path, ("rotten", old, new))) == 2
    assert "area/rotten" in capsys.readouterr().err


def test_time_that_is_up_begins_nothing_more(tool, tmp_path, capsys):
    assert tool.main([*project(tmp_path, ("wrong", "values[-1]", "values[0]")), "--minutes=0"]) == 3
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("num_killed", "survivors", "status"),
    [(20, [], 0), (19, ["explained"], 0), (19, [""], 1), (18, ["explained", "explained"], 1)],
)
def test_enough_are_noticed_if_at_most_one_in_twenty_is_not_and_that_is_explained(
    tool, num_killed, survivors, status
):
    def bug(number, survives=""):
        return tool.Bug("area", str(number), "file", "old", "new", "harm", ("test",), False, survives)

    found = {bug(number): tool.Result("killed", "test", 1.0, "") for number in range(num_killed)}
    for number, survives in enumerate(survivors, num_killed):
        found[bug(number, survives)] = tool.Result("survived", "", 1.0, "")
    assert tool.status_of(found) == status
