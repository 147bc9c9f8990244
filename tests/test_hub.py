"""Datasets of the hub, by folders that the same call reads: no test needs the network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from retrieval_spec.cli import main
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.readers.hub import HubName, hub_name
from retrieval_spec.datastore.recipe import load_recipe
from retrieval_spec.errors import InvalidRequest, MissingDependency
from tests.word_tokenizers import write_tokenizer


@pytest.mark.parametrize(
    ("spelled", "named"),
    [
        ("hf:squad", HubName("squad", None, None, "train")),
        ("hf:user/set@v1.2", HubName("user/set", "v1.2", None, "train")),
        ("hf:user/set:en", HubName("user/set", None, "en", "train")),
        ("hf:user/set@main:en:test", HubName("user/set", "main", "en", "test")),
        ("hf:user/set::test", HubName("user/set", None, None, "test")),
        ("hf:./folder", HubName("./folder", None, None, "train")),
    ],
)
def test_a_dataset_has_a_name_and_may_have_revision_configuration_and_split(spelled, named):
    assert hub_name(spelled) == named
    assert Corpus([spelled]).num_bytes == 0
    assert Corpus([spelled]).fingerprint()["files"] == [[spelled]]


@pytest.mark.parametrize("spelled", ["hf:", "hf:@main", "hf::en", "hf:a:b:c:d"])
def test_other_spellings_are_refused_before_anything_is_read(spelled):
    with pytest.raises(InvalidRequest, match="no name of a dataset"):
        Corpus([spelled])


def test_without_the_package_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"retrieval-spec\[hub\]"):
        list(Corpus(["hf:user/set"]).documents())
    model = write_tokenizer(tmp_path / "model", {"a": 0})
    command = ["build", "hf:user/set", "--tokenizer", str(model), "--out", str(tmp_path / "store")]
    assert main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_a_recipe_may_name_a_dataset(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('inputs = ["hf:user/set:en"]\ntokenizer = "model"\nout = "store"\n')
    assert list(map(str, load_recipe(recipe).inputs)) == ["hf:user/set:en"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A dataset of two splits and, in `more`, another configuration."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install '.[hub]'")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "set"
    (path / "more").mkdir(parents=True)
    write(path / "train.jsonl", [{"text": "one two", "other": 1}, {"text": None}, {"text": "three"}])
    write(path / "test.jsonl", [{"text": "four"}])
    write(path / "more" / "all.jsonl", [{"content": "five", "ids": [3, 1, 2]}])
    (path / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain\n  default: true\n  data_files:\n"
        "  - split: train\n    path: train.jsonl\n"
        "  - split: test\n    path: test.jsonl\n- config_name: more\n  data_files: more/*.jsonl\n---\n"
    )
    return path


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(*inputs: str, **options) -> list[str | None]:
    return [document.text for document in Corpus(inputs, **options).documents()]


def test_rows_of_a_split_and_of_a_configuration_are_read(folder):
    assert texts(f"hf:{folder}") == ["one two", "three"]
    assert texts(f"hf:{folder}::test") == ["four"]
    assert texts(f"hf:{folder}:more") == ["five"]
    assert texts(f"hf:{folder}:plain:test", str(folder / "test.jsonl")) == ["four", "four"]
    (document,) = Corpus([f"hf:{folder}:more"], "ids").documents()
    assert document.token_ids.tolist() == [3, 1, 2]
    assert document.source == f"hf:{folder}:more"


def test_tables_are_read_as_they_are_on_the_hub(tmp_path, folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "tables"
    path.mkdir()
    columns = {"image": [b"no picture"] * 600, "text": [f"row {n}" for n in range(600)]}
    parquet.write_table(pyarrow.table(columns), path / "train-00000-of-00001.parquet", row_group_size=100)
    assert texts(f"hf:{path}") == columns["text"]


def test_what_cannot_be_read_is_named_or_passed_over(tmp_path, folder):
    for name in (f"hf:{folder}:nothing", f"hf:{folder}::nothing", f"hf:{tmp_path}/nowhere"):
        with pytest.raises(InvalidRequest, match="cannot read hf:"):
            texts(name)
    with pytest.raises(InvalidRequest, match="no text"):
        texts(f"hf:{folder}", text_field="nothing")
    with pytest.raises(InvalidRequest, match="row 0: 'other' is no text"):
        texts(f"hf:{folder}", text_field="other")
    corpus = Corpus([f"hf:{folder}"], "other", on_error="skip")
    assert list(corpus.documents()) == []
    (skipped,) = corpus.skipped.values()
    assert skipped.num_rows == 1


def test_a_connection_that_breaks_is_an_error_of_the_file(folder, monkeypatch):
    import datasets

    def breaking():
        yield {"text": "first"}
        yield {"text": "second"}
        raise ConnectionError("reset by peer")

    def load_dataset(*arguments, **options):
        assert options["streaming"]
        return datasets.IterableDataset.from_generator(breaking)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InvalidRequest, match="cannot read hf:user/set; got ConnectionError: reset by peer"):
        texts("hf:user/set")
    corpus = Corpus(["hf:user/set"], on_error="skip")
    assert next(document.text for document in corpus.documents()) == "first"
    assert len(list(corpus.documents())) <= 2
    assert corpus.skipped[Path("hf:user/set")].is_cut_short


def test_a_datastore_is_built_from_a_dataset(tmp_path, folder, capsys):
    words = {word: number for number, word in enumerate(["none", "one", "two", "three"])}
    model = write_tokenizer(tmp_path / "model", words)
    command = ["build", f"hf:{folder}", "--tokenizer", str(model), "--out", str(tmp_path / "store"), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["num_documents"] == 2
    assert main(["inspect", str(tmp_path / "store"), "--documents", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["origin"] for line in lines] == [f"hf:{folder}"] * 2
