from __future__ import annotations

import json
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
import pytest

from retrieval_spec import encoding as encoding_module
from retrieval_spec.build import build_datastore, build_recipe
from retrieval_spec.cli import main
from retrieval_spec.datastore import documents as documents_module
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.recipe import load_recipe
from retrieval_spec.datastore.store import open_datastore, verify_datastore
from retrieval_spec.errors import (
    DatastoreError,
    DatastoreExists,
    InvalidRequest,
    MissingPath,
)
from retrieval_spec.structures.context_array import ContextArray
from tests.conftest import REPOSITORY
from tests.fake_progress import InterruptedProgress, ToldProgress
from tests.golden import FILES
from tests.word_tokenizers import write_tokenizer

WORDS = {"a": 0, "b": 1, "c": 7, "d": 300, "last": 65_534}
WIDE_WORDS = {**WORDS, "first": 65_535, "far": 151_000}


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder of its own for the datastore, so that whatever is left behind shows."""
    (tmp_path / "stores").mkdir()
    return tmp_path / "stores" / "words"


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    return write_tokenizer(tmp_path / "model", WORDS)


TEXTS = ["a b c", "", "   ", "d", "a b last"]


def test_texts_become_a_datastore(tmp_path, place, tokenizer):
    inputs = [write_lines(tmp_path / "one.jsonl", TEXTS), write_lines(tmp_path / "two.jsonl", ["c"])]
    assert build_datastore(Corpus(inputs), tokenizer=tokenizer, out=place) == place
    manifest = verify_datastore(place)
    columns = open_datastore(place).columns
    end = 65_535
    assert columns["tokens"].tolist() == [0, 1, 7, end, 300, end, 0, 1, 65_534, end, 7, end]
    assert columns["documents"].tolist() == [0, 4, 6, 10]
    assert (manifest.name, manifest.kind, manifest.token_dtype) == ("words", "context_array", "<u2")
    assert (manifest.num_tokens, manifest.num_documents, manifest.vocab_size) == (12, 4, 65_535)
    assert manifest.tokenizer.model == "WordLevel"
    assert manifest.created_by.startswith("retrieval-spec ")
    array = ContextArray.from_columns(columns, depth_tokens=manifest.depth_tokens)
    token_ids, counts = array.continuation_counts(np.array([0, 1], np.int32))
    assert dict(zip(token_ids.tolist(), counts.tolist(), strict=True)) == {7: 1, 65_534: 1}
    assert [path.name for path in place.parent.iterdir()] == ["words"]


@pytest.mark.parametrize(
    ("word", "dtype", "end"),
    [("last", "<u2", 65_535), ("first", "<i4", 2**31 - 1), ("far", "<i4", 2**31 - 1)],
)
def test_ids_are_as_wide_as_they_need_to_be(tmp_path, place, word, dtype, end, monkeypatch):
    monkeypatch.setattr(documents_module, "_CHUNK_TOKENS", 3)
    tokenizer = write_tokenizer(tmp_path / "wide", WIDE_WORDS)
    texts = ["a b c d", f"b {word}", "d c b a"]
    build_datastore(Corpus([write_lines(tmp_path / "one.jsonl", texts)]), tokenizer=tokenizer, out=place)
    manifest = verify_datastore(place)
    assert (manifest.token_dtype, manifest.separator, manifest.vocab_size) == (dtype, end, 151_001)
    expected = [0, 1, 7, 300, end, 1, WIDE_WORDS[word], end, 300, 7, 1, 0, end]
    assert open_datastore(place).columns["tokens"].tolist() == expected


def test_batches_change_nothing(tmp_path, place, tokenizer, monkeypatch):
    lines = write_lines(tmp_path / "one.jsonl", ["a b c d"[: n % 8] for n in range(200)])
    whole = build_datastore(Corpus([lines]), tokenizer=tokenizer, out=place)
    monkeypatch.setattr(encoding_module, "_BATCH_CHARACTERS", 10)
    small = build_datastore(
        Corpus([lines]), tokenizer=tokenizer, out=place.with_name("other"), name="words", threads=1
    )
    assert [(whole / name).read_bytes() for name in FILES] == [(small / name).read_bytes() for name in FILES]


def test_every_stage_is_told(tmp_path, place, tokenizer):
    told = ToldProgress()
    lines = write_lines(tmp_path / "one.jsonl", TEXTS)
    build_datastore(Corpus([lines]), tokenizer=tokenizer, out=place, progress=told)
    stages = [(stage, unit) for stage, _, unit, _ in told.stages]
    assert stages == [("encoding", "B"), ("sorting", "tokens"), ("writing", "B")]
    assert told.is_complete()


def test_a_taken_place_is_found_before_anything_is_read(tmp_path, place):
    place.mkdir()
    corpus = Corpus([write_lines(tmp_path / "one.jsonl", ["a b"])])
    with pytest.raises(DatastoreExists):
        build_datastore(corpus, tokenizer="nowhere", out=place)
    with pytest.raises(DatastoreError, match="no datastore"):
        build_datastore(corpus, tokenizer="nowhere", out=place, replace=True)
    with pytest.raises(MissingPath, match="create it first"):
        build_datastore(corpus, tokenizer="nowhere", out=place / "no" / "where")


def test_a_datastore_is_replaced_when_asked(tmp_path, place, tokenizer):
    build_datastore(Corpus([write_lines(tmp_path / "one.jsonl", ["a b"])]), tokenizer=tokenizer, out=place)
    lines = write_lines(tmp_path / "one.jsonl", ["a b c"])
    with pytest.raises(DatastoreExists):
        build_datastore(Corpus([lines]), tokenizer=tokenizer, out=place)
    build_datastore(Corpus([lines]), tokenizer=tokenizer, out=place, replace=True)
    assert verify_datastore(place).num_tokens == 4
    assert [path.name for path in place.parent.iterdir()] == ["words"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": ""}, "the name of the datastore is not allowed"),
        ({"name": "two\nlines"}, "the name of the datastore is not allowed"),
        ({"depth_tokens": 0}, "depth_tokens is out of range"),
        ({"depth_tokens": 65}, "depth_tokens is out of range"),
        ({"threads": 0}, "threads is out of range"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(tmp_path, place, tokenizer, options, said):
    lines = write_lines(tmp_path / "one.jsonl", ["a b"])
    with pytest.raises(InvalidRequest, match=said):
        build_datastore(Corpus([lines]), tokenizer=tokenizer, out=place, **options)
    assert list(place.parent.iterdir()) == []


def test_a_field_that_no_row_has_is_refused(tmp_path, place, tokenizer):
    lines = write_lines(tmp_path / "one.jsonl", ["a b"])
    with pytest.raises(InvalidRequest, match="no text; got text; expected body"):
        build_datastore(Corpus([lines], "body"), tokenizer=tokenizer, out=place)
    assert list(place.parent.iterdir()) == []


def test_a_corpus_without_text_is_refused(tmp_path, place, tokenizer):
    (tmp_path / "binary.txt").write_bytes(b"\0\1")
    inputs = [write_lines(tmp_path / "one.jsonl", ["", "  "]), tmp_path / "binary.txt"]
    with pytest.raises(InvalidRequest, match=r"no documents found.*got 1 files that are no UTF-8 text"):
        build_datastore(Corpus(inputs), tokenizer=tokenizer, out=place)
    assert list(place.parent.iterdir()) == []


def test_recorded_ids_stand_among_texts_as_they_are(tmp_path, place, tokenizer):
    rows = [{"text": "a b"}, {"prompt_ids": [7, 1], "output_ids": [300, 0]}, {"text": "c"}]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build_datastore(Corpus([tmp_path / "one.jsonl"]), tokenizer=tokenizer, out=place)
    end = 65_535
    assert open_datastore(place).columns["tokens"].tolist() == [0, 1, end, 7, 1, 300, 0, end, 7, end]


@pytest.mark.row("F8")
def test_ids_of_another_tokenizer_stop_the_build_or_are_passed_over(tmp_path, place, tokenizer, caplog):
    rows = [{"output_ids": [1]}, {"output_ids": [65_535]}, {"output_ids": [0]}]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        InvalidRequest, match=r"one\.jsonl:2: token id at index 0 is outside the vocab.*65535"
    ):
        build_datastore(Corpus([tmp_path / "one.jsonl"]), tokenizer=tokenizer, out=place)
    corpus = Corpus([tmp_path / "one.jsonl"], on_error="skip")
    build_datastore(corpus, tokenizer=tokenizer, out=place)
    assert verify_datastore(place).num_documents == 2
    assert "skipped of" in caplog.text
    assert "1 row, the first because" in caplog.text


def test_a_bad_line_at_the_end_leaves_nothing(tmp_path, place, tokenizer):
    lines = write_lines(tmp_path / "one.jsonl", ["a b"] * 100)
    lines.write_text(lines.read_text() + "{\n")
    with pytest.raises(InvalidRequest, match=r"one\.jsonl:101: not JSON"):
        build_datastore(Corpus([lines]), tokenizer=tokenizer, out=place)
    assert list(place.parent.iterdir()) == []


class FullDisk:
    """A file that cannot be written."""

    def __init__(self, error):
        self.error = error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def write(self, data):
        raise self.error


@pytest.mark.row("D3")
def test_a_full_disk_is_named(tmp_path, place, tokenizer, monkeypatch):
    lines = write_lines(tmp_path / "one.jsonl", ["a b"])
    full = FullDisk(OSError(28, "No space left on device"))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    with pytest.raises(
        DatastoreError, match=r"cannot write .*words; got No space left on device; free space"
    ):
        build_datastore(Corpus([lines]), tokenizer=tokenizer, out=place)


@pytest.mark.row("D3")
@pytest.mark.parametrize("stage", ["encoding", "sorting", "writing"])
def test_an_interrupt_in_any_stage_leaves_nothing(tmp_path, place, tokenizer, stage):
    lines = write_lines(tmp_path / "one.jsonl", TEXTS)
    with pytest.raises(KeyboardInterrupt):
        build_datastore(Corpus([lines]), tokenizer=tokenizer, out=place, progress=InterruptedProgress(stage))
    assert list(place.parent.iterdir()) == []


# From the command line


def test_options_of_reading_arrive_from_the_command_line(tmp_path, place, tokenizer, capsys, caplog):
    folder = tmp_path / "tree"
    for name in ("a.py", "b.py", "c.md", "old/d.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# Licence\n\n{'last' if name == 'b.py' else 'b'}")
    (folder / "e.jsonl").write_text('{"text": "c"}\n{"text": 7}\n')
    arguments = ["--include", "*.py", "--include", "*.jsonl", "--exclude", "old/**", "--skip-licence-headers"]
    command = ["build", str(folder), "--tokenizer", str(tokenizer), "--out", str(place), *arguments]
    assert main(command) == 2
    assert "e.jsonl:2: 'text' is no text" in capsys.readouterr().err
    assert main([*command, "--on-error", "skip"]) == 0
    end = 65_535
    assert open_datastore(place).columns["tokens"].tolist() == [1, end, 65_534, end, 7, end]
    assert "e.jsonl: 1 row, the first because" in caplog.text


@pytest.mark.parametrize("option", [["--include", "*.py"], ["--on-error", "skip"], ["--text-field", "a"]])
@pytest.mark.parametrize(
    "way", [["--recipe", "a.toml"], ["--from-datastore", "a", "--from-tokenizer", "b", "--tokenizer", "c"]]
)
def test_options_that_would_be_ignored_are_refused(capsys, way, option):
    assert main(["build", *way, *option]) == 2
    assert f"got {option[0]}; leave it out" in capsys.readouterr().err


# Recipes


def write_recipe(folder: Path, text: str) -> Path:
    (folder / "words.toml").write_text(text)
    return folder / "words.toml"


MINIMAL = 'inputs = ["*.jsonl"]\ntokenizer = "model"\nout = "stores/words"\n'


def test_a_recipe_is_built_from_its_own_folder(tmp_path, place, tokenizer, monkeypatch):
    monkeypatch.chdir("/")
    write_lines(tmp_path / "b.jsonl", ["b"])
    write_lines(tmp_path / "a.jsonl", ["a"])
    recipe = write_recipe(tmp_path, MINIMAL + 'name = "Words"\ndepth_tokens = 8\n')
    assert build_recipe(recipe) == place
    assert verify_datastore(place).depth_tokens == 8
    assert verify_datastore(place).name == "Words"
    assert open_datastore(place).columns["tokens"].tolist() == [0, 65_535, 1, 65_535]
    other = build_recipe(recipe, out=place.with_name("other"))
    assert verify_datastore(other).num_tokens == 4
    with pytest.raises(DatastoreExists):
        build_recipe(recipe)
    build_recipe(recipe, replace=True)


def test_every_field_of_a_recipe_arrives(tmp_path):
    (tmp_path / "text").mkdir()
    recipe = load_recipe(
        write_recipe(
            tmp_path,
            'inputs = ["{stdlib}", "text"]\ntokenizer = "m"\nout = "o"\nname = "n"\ntext_field = "body"\n'
            'exclude = ["test"]\ninclude = ["*.py"]\non_error = "skip"\nskip_licence_headers = true\n'
            "depth_tokens = 16\n",
        )
    )
    assert recipe.inputs == (Path(sysconfig.get_path("stdlib")), tmp_path / "text")
    assert (recipe.tokenizer, recipe.out) == (tmp_path / "m", tmp_path / "o")
    assert (recipe.name, recipe.text_field, recipe.exclude, recipe.depth_tokens) == (
        "n",
        "body",
        ("test",),
        16,
    )
    assert (recipe.include, recipe.on_error, recipe.skip_licence_headers) == (("*.py",), "skip", True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inputs = [", "cannot read the recipe"),
        ('tokenizer = "m"\n', "wrong fields; got no inputs, out"),
        (MINIMAL + 'colour = "red"\n', "wrong fields; got unknown colour"),
        (MINIMAL + "depth_tokens = true\n", "'depth_tokens' is wrong; got True; expected int"),
        (MINIMAL + 'depth_tokens = "8"\n', "'depth_tokens' is wrong"),
        (MINIMAL + 'exclude = "test"\n', "'exclude' is wrong; got 'test'; expected a list of texts"),
        (MINIMAL.replace('["*.jsonl"]', "[7]"), "'inputs' is wrong"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, text, said):
    with pytest.raises(InvalidRequest, match=said):
        load_recipe(write_recipe(tmp_path, text))


def test_a_recipe_that_is_not_there_or_matches_nothing(tmp_path):
    with pytest.raises(MissingPath, match="no such recipe"):
        load_recipe(tmp_path / "no.toml")
    with pytest.raises(MissingPath, match="matches nothing"):
        load_recipe(write_recipe(tmp_path, MINIMAL))


def test_the_recipes_that_ship_can_be_read():
    recipes = {path.stem: load_recipe(path) for path in (REPOSITORY / "datastores").rglob("*.toml")}
    assert all(recipe.tokenizer.is_dir() for recipe in recipes.values())
    assert recipes["python-stdlib"].out == REPOSITORY / "datastores" / "python-stdlib"
    assert recipes["python-stdlib"].inputs[0].joinpath("json", "__init__.py").is_file()
    assert {"source-tree", "documentation", "chat-log", "recorded-outputs"} < set(recipes)
    assert all(recipe.out.resolve() == REPOSITORY / "datastores" / name for name, recipe in recipes.items())


@pytest.mark.parametrize(("name", "num_documents"), [("chat-log", 2), ("recorded-outputs", 2)])
def test_the_recipes_with_samples_can_be_built(place, name, num_documents):
    build_recipe(REPOSITORY / "datastores" / "recipes" / f"{name}.toml", out=place)
    assert verify_datastore(place).num_documents == num_documents
