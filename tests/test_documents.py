"""Documents are listed with the ids that `remove` takes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from retrieval_spec.build import build_datastore
from retrieval_spec.cli import main
from retrieval_spec.datastore import documents as documents_module
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.documents import Documents, id_of, shown_id
from retrieval_spec.datastore.segments import open_segments
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.grow import append_documents
from tests.conftest import REPOSITORY
from tests.golden import copy_golden
from tests.stores import write_corpus, write_dense
from tests.word_tokenizers import write_tokenizer

WORDS = {f"w{n}": n for n in range(61)}
LINES = [f"w{n} w{n + 1} w{n + 2}" for n in range(0, 20, 2)]


@pytest.fixture
def tokenizer(tmp_path):
    return write_tokenizer(tmp_path / "model", WORDS)


@pytest.fixture
def store(tmp_path, tokenizer):
    """Two segments: LINES[:6] of `one.txt`-like rows, the rest of another file."""
    for name, lines in (("one", LINES[:6]), ("two", LINES[6:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    path = build_datastore(Corpus([tmp_path / "one.jsonl"]), tokenizer=tokenizer, out=tmp_path / "store")
    append_documents(path, Corpus([tmp_path / "two.jsonl"]), tokenizer=tokenizer)
    return path


def listed(capsys, *arguments):
    assert main(["inspect", *map(str, arguments), "--documents", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_document_is_listed_in_its_order(tmp_path, store, tokenizer, capsys):
    found = listed(capsys, store, "--tokenizer", tokenizer)
    assert [one["text"] for one in found] == LINES
    assert [one["num_tokens"] for one in found] == [3] * len(LINES)
    assert [one["origin"] for one in found] == [str(tmp_path / "one.jsonl")] * 6 + [
        str(tmp_path / "two.jsonl")
    ] * 4
    first = np.array([0, 1, 2], "<i4").tobytes()
    assert found[0]["id"] == hashlib.sha256(first).hexdigest()[:16]


def test_a_listed_id_is_the_one_that_remove_takes(store, tokenizer, capsys):
    gone = listed(capsys, store, "--tokenizer", tokenizer)[7]
    assert main(["remove", str(store), "--id", gone["id"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_removed"] == 1
    left = listed(capsys, store, "--tokenizer", tokenizer)
    assert [one["text"] for one in left] == [line for line in LINES if line != LINES[7]]
    assert gone["id"] not in {one["id"] for one in left}
    assert main(["remove", str(store), "--id", gone["id"]]) == 2
    assert "inspect DIR --documents" in capsys.readouterr().err


def test_origins_choose_what_is_listed(store, capsys):
    assert len(listed(capsys, store, "--origin", "*two.jsonl")) == 4
    assert len(listed(capsys, store, "--origin", "*two.jsonl", "--origin", "*one.jsonl")) == 10
    assert listed(capsys, store, "--origin", "two.jsonl") == []
    assert "text" in listed(capsys, store)[0]
    assert main(["inspect", str(store), "--origin", "*two.jsonl"]) == 2
    assert "--documents" in capsys.readouterr().err


def test_people_see_a_line_for_each_document(tmp_path, store, tokenizer, capsys):
    assert main(["inspect", str(store), "--documents", "--tokenizer", str(tokenizer)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(LINES)
    assert lines[9].split() == [lines[9][:16], "3", str(tmp_path / "two.jsonl"), *LINES[9].split()]


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    store = write_corpus(tmp_path / "long", [[n % 50, n % 49] for n in range(20_000)], 61)
    listing = f"{sys.executable} -m retrieval_spec.cli inspect {store} --documents"
    command = f"{listing} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_documents_are_gone_over_in_chunks(store, monkeypatch):
    documents = Documents.from_columns(open_segments(store).stores[0].columns)
    whole = [(token_ids.tolist(), origin) for token_ids, origin in documents.each()]
    for size in (1, 4, 5, 6, 7):
        monkeypatch.setattr(documents_module, "_CHUNK_DOCUMENTS", size)
        assert [(token_ids.tolist(), origin) for token_ids, origin in documents.each()] == whole


def test_stores_without_ids_and_dense_ones_are_listed_too(tmp_path, capsys):
    old = write_corpus(tmp_path / "old", [[1, 2, 3], [4, 5]], 61)
    assert [one["origin"] for one in listed(capsys, old)] == ["", ""]
    pytest.importorskip("faiss")
    dense = write_dense(tmp_path / "dense", [[1, 2, 3]], 61, np.eye(2, 4, dtype=np.float32))
    assert listed(capsys, dense)[0]["id"] == listed(capsys, old)[0]["id"]


def test_other_kinds_have_no_documents(tmp_path, capsys):
    assert main(["inspect", str(copy_golden(tmp_path, "rows")), "--documents"]) == 2
    assert "only a corpus has documents" in capsys.readouterr().err


@pytest.mark.parametrize("number", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_an_id_is_read_as_it_was_shown(number):
    assert id_of(shown_id(number)) == number


@pytest.mark.parametrize("shown", ["", "0", "g" * 16, "A" * 16, "0" * 17, "0" * 15 + "\n"])
def test_what_is_no_id_is_refused(shown):
    with pytest.raises(InvalidRequest, match="16 hexadecimal digits"):
        id_of(shown)
