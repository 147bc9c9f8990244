"""Near-duplicates are left out of builds, of builds that go on, and of what is appended."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from retrieval_spec import encoding as encoding_module
from retrieval_spec.build import build_datastore, build_recipe
from retrieval_spec.cli import main
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.documents import Documents
from retrieval_spec.datastore.progress import NoProgress
from retrieval_spec.datastore.segments import open_segments, verify_segments
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.grow import append_documents
from tests.word_tokenizers import write_tokenizer

WORDS = {f"w{n}": n for n in range(600)}
RNG = np.random.default_rng(0)
PAGES = [[f"w{word}" for word in RNG.integers(0, 600, 40)] for _ in range(6)]


def page(number: int, num_changed: int = 0) -> str:
    """One of six pages, its last words changed: two words are 2 of 36 runs of five."""
    return " ".join(PAGES[number][: 40 - num_changed] + ["w0"] * num_changed)


# Pages 0 to 5 in turn with what is nearly one of them, what is the same, and what is half of one.
TEXTS = [
    page(0),
    page(0, 2),
    page(1),
    page(2),
    page(0),
    page(1, 1),
    page(2, 20),
    page(3),
    page(4),
    page(4, 1),
    page(5),
    page(3, 2),
    page(0, 2),
]
KEPT = [TEXTS[at] for at in (0, 2, 3, 6, 7, 8, 10)]


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    return write_tokenizer(tmp_path / "model", WORDS)


@pytest.fixture
def lines(tmp_path) -> Path:
    return write_texts(tmp_path / "one.jsonl", TEXTS)


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def held(path: Path) -> list[str]:
    """The texts of the current generation, in order."""
    return [
        " ".join(f"w{token}" for token in token_ids)
        for segment in open_segments(path).stores
        for token_ids, _ in Documents.from_columns(segment.columns).each()
    ]


def small_segments(monkeypatch) -> None:
    monkeypatch.setattr(encoding_module, "MIN_SEGMENT_TOKENS", 1)
    monkeypatch.setattr(encoding_module, "BUILD_BYTES", 0)
    monkeypatch.setattr(encoding_module, "BUILD_BYTES_PER_TOKEN", 1)
    monkeypatch.setattr(encoding_module, "_BATCH_CHARACTERS", 300)


def test_a_build_keeps_the_first_of_what_is_nearly_the_same_and_says_so(tmp_path, lines, tokenizer, caplog):
    place = build_datastore(
        Corpus([lines]), tokenizer=tokenizer, out=tmp_path / "store", drop_near_duplicates=0.8
    )
    assert held(place) == KEPT
    assert "left out 1 documents that came before and 5 that are nearly one of those" in caplog.text
    verify_segments(place)


def test_without_the_option_everything_stays(tmp_path, lines, tokenizer, caplog):
    assert held(build_datastore(Corpus([lines]), tokenizer=tokenizer, out=tmp_path / "store")) == TEXTS
    assert "left out" not in caplog.text


def test_a_higher_threshold_keeps_more(tmp_path, lines, tokenizer):
    place = build_datastore(
        Corpus([lines]), tokenizer=tokenizer, out=tmp_path / "store", drop_near_duplicates=1.0
    )
    assert len(held(place)) == len(set(TEXTS))


class InterruptedAt(NoProgress):
    """Interrupts a build when so many stages have begun."""

    def __init__(self, num_stages: int) -> None:
        self.num_left = num_stages

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.num_left -= 1
        if self.num_left == 0:
            raise KeyboardInterrupt


def test_segments_change_nothing_nor_does_a_build_that_was_killed_and_goes_on(
    tmp_path, lines, tokenizer, monkeypatch
):
    small_segments(monkeypatch)
    options = {"tokenizer": tokenizer, "memory_limit_bytes": 90, "drop_near_duplicates": 0.8, "name": "n"}
    whole = build_datastore(Corpus([lines]), out=tmp_path / "whole", **options)
    assert len(open_segments(whole).stores) >= 3
    num_resumed = 0
    for num_stages in range(1, 10):
        place = tmp_path / f"place{num_stages}"
        try:
            build_datastore(Corpus([lines]), out=place, progress=InterruptedAt(num_stages), **options)
        except KeyboardInterrupt:
            num_resumed += place.with_name(f".{place.name}.segments").is_dir()
            build_datastore(Corpus([lines]), out=place, **options)
        assert held(place) == KEPT
        assert [store.manifest for store in open_segments(place).stores] == [
            store.manifest for store in open_segments(whole).stores
        ]
    assert num_resumed >= 3


def test_appended_documents_are_compared_with_all_segments_and_with_each_other(tmp_path, lines, tokenizer):
    first = write_texts(tmp_path / "first.jsonl", TEXTS[:2])
    place = build_datastore(Corpus([first]), tokenizer=tokenizer, out=tmp_path / "store")
    for at, (first_text, last_text) in enumerate(pairwise((2, 4, len(TEXTS)))):
        more = write_texts(tmp_path / f"more{at}.jsonl", TEXTS[first_text:last_text])
        changed = append_documents(place, Corpus([more]), tokenizer=tokenizer, drop_near_duplicates=0.8)
    assert held(place) == [TEXTS[0], TEXTS[1], *KEPT[1:]]  # what is held stays, whatever it is like
    assert (changed.num_added, changed.num_duplicates, changed.num_near_duplicates) == (4, 2, 3)
    again = append_documents(place, Corpus([lines]), tokenizer=tokenizer, drop_near_duplicates=0.8)
    assert (again.num_added, again.generation) == (0, changed.generation)


def test_only_near_duplicates_to_append_are_no_error(tmp_path, tokenizer):
    first = Corpus([write_texts(tmp_path / "a.jsonl", [page(0)])])
    place = build_datastore(first, tokenizer=tokenizer, out=tmp_path / "store")
    more = Corpus([write_texts(tmp_path / "b.jsonl", [page(0, 1)])])
    changed = append_documents(place, more, tokenizer=tokenizer, drop_near_duplicates=0.8)
    assert (changed.num_added, changed.num_near_duplicates, changed.generation) == (0, 1, 0)


def test_the_command_line_takes_a_threshold_or_none(tmp_path, lines, tokenizer, capsys):
    common = ["--tokenizer", str(tokenizer), "--json", "--drop-near-duplicates"]
    assert main(["build", str(lines), "--out", str(tmp_path / "a"), *common]) == 0
    assert main(["build", str(lines), "--out", str(tmp_path / "b"), *common, "1.0"]) == 0
    assert held(tmp_path / "a") == KEPT
    assert len(held(tmp_path / "b")) == len(set(TEXTS))
    capsys.readouterr()
    assert main(["append", str(tmp_path / "a"), str(lines), *common]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["num_added"], said["num_duplicates"], said["num_near_duplicates"]) == (0, 8, 5)


@pytest.mark.parametrize("option", [["--drop-near-duplicates"], ["--drop-duplicates"]])
@pytest.mark.parametrize(
    "way",
    [
        ["--recipe", "a.toml"],
        ["--from-datastore", "a", "--from-tokenizer", "b", "--tokenizer", "c"],
        ["a.jsonl", "--kind", "dense", "--model", "m", "--out", "o"],
    ],
)
def test_where_they_would_be_ignored_the_options_are_refused(capsys, way, option):
    assert main(["build", *way, *option]) == 2
    assert f"got {option[0]}; leave it out" in capsys.readouterr().err


def test_a_recipe_says_what_is_left_out(tmp_path, lines, tokenizer):
    recipe = tmp_path / "words.toml"
    text = 'inputs = ["one.jsonl"]\ntokenizer = "model"\nout = "store"\n'
    recipe.write_text(text + "drop_near_duplicates = 0.8\n")
    assert held(build_recipe(recipe)) == KEPT
    recipe.write_text(text + "drop_duplicates = true\n")
    assert len(held(build_recipe(recipe, replace=True))) == len(set(TEXTS))


def test_a_threshold_out_of_range_is_refused_before_anything_is_read(tmp_path, lines):
    with pytest.raises(InvalidRequest, match=r"near-duplicates is out of range; got 80"):
        build_datastore(Corpus([lines]), tokenizer="no", out=tmp_path / "store", drop_near_duplicates=80)
    with pytest.raises(InvalidRequest, match="near-duplicates is out of range"):
        append_documents(tmp_path / "no", Corpus([lines]), tokenizer="no", drop_near_duplicates=0.1)
