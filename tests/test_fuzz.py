"""What parses bytes of strangers: the kept corpus and mutations of it, and atheris where there is time."""

from __future__ import annotations

import importlib.util
import random
import re
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.fuzz import CORPUS, TARGETS, attempt, corpus_of, mutated, seeds

pytestmark = pytest.mark.row("F-fuzz")
MUTATIONS = 3_000
FUZZ_SECONDS = 150


@pytest.mark.parametrize("name", TARGETS)
def test_sound_inputs_are_taken(name):
    assert all(attempt(TARGETS[name], data) for data in seeds()[name])


@pytest.mark.quick
@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_what_is_near_it_is_taken_or_refused(name):
    chosen = random.Random(name)
    corpus = corpus_of(name)
    taken = [attempt(TARGETS[name], data) for data in corpus]
    assert any(taken)
    near = [attempt(TARGETS[name], mutated(chosen.choice(corpus), chosen)) for _ in range(MUTATIONS)]
    assert name == "history" or not all(near)  # of a history, what is whole is taken


def test_the_corpus_is_small():
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 300_000


@pytest.mark.long
@pytest.mark.timeout(FUZZ_SECONDS + 120)
@pytest.mark.parametrize("name", TARGETS)
def test_atheris_finds_no_input_that_ends_badly(name, tmp_path):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: pip install retrieval-spec[fuzz]")
    command = [sys.executable, "-m", "tests.atheris_fuzz", name, str(FUZZ_SECONDS), str(tmp_path / "found")]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3_000:]
    count = int(re.findall(r"#(\d+)\s+DONE|Done (\d+) runs", ran.stderr)[-1][0] or 0)
    print(name, count, "runs")
