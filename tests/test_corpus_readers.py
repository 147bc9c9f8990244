from __future__ import annotations

import builtins
import gzip
import json
import logging
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from retrieval_spec.datastore import corpus as corpus_module
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.readers.jsonl import MAX_LINE_BYTES
from retrieval_spec.errors import InvalidRequest, MissingDependency, MissingPath

TEXTS = ["def f():\n    return 1\n", "čeština, 日本語, 🙂\n", "third"]


def zst(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def jsonl(records: list[object]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def texts(*inputs: Path, **options) -> list[str]:
    return [document.text for document in Corpus(inputs, **options).documents()]


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def write_parquet(path: Path, table: pa.Table) -> Path:
    parquet.write_table(table, path, row_group_size=2)
    return path


def write_arrow_file(path: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def write_arrow_stream(path: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


TABLE_WRITERS = {
    "parquet": ("a.parquet", write_parquet),
    "arrow file": ("a.arrow", write_arrow_file),
    "arrow stream": ("a.arrow", write_arrow_stream),
    "feather": ("a.feather", write_arrow_file),
}


# Every format


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".GZ"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "A.JSONL"])
def test_jsonl(tmp_path, name, suffix):
    data = jsonl([{"text": text, "id": 7} for text in TEXTS])
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zst}[suffix.lower()]
    assert texts(write(tmp_path / (name + suffix), pack(data))) == TEXTS


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zst)])
def test_files_of_several_frames_are_read_to_the_end(tmp_path, suffix, pack):
    frames = b"".join(pack(jsonl([{"text": text}])) for text in TEXTS)
    assert texts(write(tmp_path / f"a.jsonl{suffix}", frames)) == TEXTS


@pytest.mark.parametrize("kind", TABLE_WRITERS)
@pytest.mark.parametrize(
    "type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_tables(tmp_path, kind, type_):
    name, write_table = TABLE_WRITERS[kind]
    column = pa.array([*TEXTS, None, ""], pa.string()).cast(type_)
    table = pa.table({"id": pa.array(range(5)), "text": column})
    assert texts(write_table(tmp_path / name, table)) == TEXTS


def test_text_keeps_its_line_ends_and_loses_its_byte_order_mark(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\r\ntwo\rthree\n".encode())
    assert texts(path) == ["one\r\ntwo\rthree\n"]


@pytest.mark.parametrize("name", ["notes.md", "a.py", "a.txt.gz", "a.txt.zst", "LICENSE", "Makefile"])
def test_text_files(tmp_path, name):
    data = TEXTS[1].encode()
    pack = {".gz": gzip.compress, ".zst": zst}.get(Path(name).suffix, bytes)
    assert texts(write(tmp_path / name, pack(data))) == [TEXTS[1]]


def test_documents_know_their_file(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl([{"text": "one"}]))
    (document,) = Corpus([str(path)]).documents()
    assert document.source == str(path)


@given(st.lists(st.text(max_size=40), max_size=12))
def test_jsonl_gives_back_every_text(tmp_path_factory, written):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_bytes(jsonl([{"text": text} for text in written]))
    assert texts(path) == [text for text in written if text]


# Which field


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "a", "content": "b", "output": "c"}, "a"),
        ({"content": "b", "prompt": "p", "output": "c"}, "b"),
        ({"prompt": "p", "output": "c"}, "p\nc"),
        ({"prompt": "", "output": "c"}, "c"),
        ({"prompt": None, "output": "c"}, "c"),
        ({"output": "c"}, "c"),
    ],
    ids=str,
)
def test_the_field_is_chosen_by_its_name(tmp_path, record, text):
    assert texts(write(tmp_path / "a.jsonl", jsonl([record]))) == [text]
    assert texts(write_parquet(tmp_path / "a.parquet", pa.table({k: [v] for k, v in record.items()}))) == [
        text
    ]


def test_the_field_can_be_named(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl([{"text": "a", "body": "b"}]))
    assert texts(path, text_field="body") == ["b"]
    with pytest.raises(
        InvalidRequest, match=r"a\.jsonl:1: no text; got text, body; expected other; .*--text-field"
    ):
        texts(path, text_field="other")


def test_records_may_differ_from_line_to_line(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        jsonl([{"text": "a"}, {"output": "b"}, {"text": None}, {"content": "c", "n": [1]}]),
    )
    assert texts(path) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", TABLE_WRITERS)
def test_a_table_without_text_is_named(tmp_path, kind):
    name, write_table = TABLE_WRITERS[kind]
    path = write_table(tmp_path / name, pa.table({"id": [1], "prompt": ["x"]}))
    with pytest.raises(InvalidRequest, match=rf"{name}: no text; got id, prompt"):
        texts(path)
    path = write_table(tmp_path / name, pa.table({"text": [1]}))
    with pytest.raises(InvalidRequest, match=rf"{name}: row 0: 'text' is no text; got int"):
        texts(path)


# Folders


def test_a_folder_gives_its_texts_in_order_and_leaves_the_rest(tmp_path):
    write(tmp_path / "b.txt", b"b")
    write(tmp_path / "a" / "z.py", b"z")
    write(tmp_path / "a" / "c.jsonl", jsonl([{"text": "c1"}, {"text": "c2"}]))
    for name in (
        ".hidden.txt",
        ".git/config.txt",
        "picture.png",
        "README",
        "model.safetensors",
        "x.tar.gz",
        "skip/e.txt",
    ):
        write(tmp_path / name, b"no")
    assert texts(tmp_path, exclude=["skip"]) == ["b", "c1", "c2", "z"]


def test_what_is_no_text_is_skipped_and_counted(tmp_path, caplog):
    write(tmp_path / "a.txt", b"fine")
    write(tmp_path / "binary.txt", b"ab\0cd")
    write(tmp_path / "latin.txt", "café".encode("latin-1"))
    corpus = Corpus([tmp_path])
    with caplog.at_level(logging.WARNING):
        assert [document.text for document in corpus.documents()] == ["fine"]
    assert corpus.num_skipped_files == 2
    assert "binary.txt is no text file" in caplog.text
    assert "latin.txt is no text file" in caplog.text


def test_a_file_named_twice_is_read_once(tmp_path):
    path = write(tmp_path / "a.txt", b"once")
    assert texts(tmp_path, path, path) == ["once"]


def test_progress_adds_up_to_the_size_of_the_files(tmp_path):
    write(tmp_path / "a.txt", b"x" * 5_000)
    write(tmp_path / "b.jsonl.zst", zst(jsonl([{"text": "y" * 100}] * 1_000)))
    table = pa.table({"text": ["z"] * 1_000})
    write_parquet(tmp_path / "c.parquet", table)
    write_arrow_file(tmp_path / "d.arrow", table)
    write_arrow_stream(tmp_path / "e.arrow", table)
    corpus = Corpus([tmp_path])
    told: list[int] = []
    assert sum(1 for _ in corpus.documents(told.append)) == 4_001
    assert sum(told) == corpus.num_bytes


def test_a_long_text_becomes_documents_that_end_with_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "MAX_DOCUMENT_CHARACTERS", 10)
    path = write(
        tmp_path / "a.jsonl",
        jsonl([{"text": "one\ntwo\nthree\nfour"}, {"text": "x" * 25}, {"text": "y" * 10}]),
    )
    assert texts(path) == ["one\ntwo\n", "three\nfour", "x" * 10, "x" * 10, "x" * 5, "y" * 10]


def test_a_large_file_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "large.txt"
    path.write_bytes(b"a line of text that is long enough to count\n" * 600_000)
    num_characters = 0
    tracemalloc.start()
    try:
        for document in Corpus([path]).documents():
            num_characters += len(document.text)
            assert document.text.endswith("\n")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_characters == path.stat().st_size
    assert peak_bytes < 12 << 20


# Bad input


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "not JSON"),
        (b'{"text": "a"} x', "not JSON"),
        (b'{"text": "\xff"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 5_000, "(not JSON|no object)"),
        (b"[1]", "no object; got list"),
        (b'"text"', "no object; got str"),
        (b"{}", "no text; got no field"),
        (b'{"prompt": "p"}', "no text; got prompt"),
        (b'{"text": 7}', "'text' is no text; got int"),
        (b'{"text": ["a"]}', "'text' is no text; got list"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    path = write(tmp_path / "a.jsonl", b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(InvalidRequest, match=rf"a\.jsonl:3: {said}"):
        texts(path)


def test_a_line_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("retrieval_spec.datastore.readers.jsonl.MAX_LINE_BYTES", 40)
    path = write(tmp_path / "a.jsonl", jsonl([{"text": "fine"}, {"text": "x" * 40}]))
    with pytest.raises(InvalidRequest, match=r"a\.jsonl:2: the line is too long"):
        texts(path)


def test_an_unpaired_surrogate_is_replaced(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": "a\\ud800b \\ud83d\\ude42"}\n')
    assert texts(path) == ["a\ufffdb 🙂"]


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst", ".txt.gz", ".txt.zst"])
@pytest.mark.parametrize("damage", ["cut", "altered", "not compressed"])
def test_a_damaged_compressed_file_is_named(tmp_path, suffix, damage):
    data = jsonl([{"text": f"{n} {n * n} {n * n * n}"} for n in range(6_000)])
    whole = (gzip.compress if suffix.endswith(".gz") else zst)(data)
    middle = len(whole) // 2
    damaged = {
        "cut": whole[:middle],
        "altered": whole[:middle] + bytes(64) + whole[middle + 64 :],
        "not compressed": data,
    }[damage]
    path = write(tmp_path / f"a{suffix}", damaged)
    with pytest.raises(InvalidRequest, match=rf"a{suffix}"):
        texts(path)


@pytest.mark.parametrize("kind", TABLE_WRITERS)
@pytest.mark.parametrize("damage", ["empty", "cut", "altered"])
def test_a_damaged_table_is_named(tmp_path, kind, damage):
    name, write_table = TABLE_WRITERS[kind]
    path = write_table(tmp_path / name, pa.table({"text": [f"{n} {n * n}" for n in range(3_000)]}))
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "cut": whole[: len(whole) // 2], "altered": b"\xff" * 64 + whole[64:]}[damage]
    )
    with pytest.raises(InvalidRequest, match=rf"cannot read .*{name}"):
        texts(path)


@pytest.mark.row("F-fuzz")
@pytest.mark.parametrize("kind", TABLE_WRITERS)
def test_altered_bytes_of_a_table_give_one_kind_of_error(tmp_path, kind):
    name, write_table = TABLE_WRITERS[kind]
    path = write_table(tmp_path / name, pa.table({"output_ids": [[n, n + 1] for n in range(50)]}))
    whole = path.read_bytes()
    generator = np.random.default_rng(5)
    num_refused = 0
    for _ in range(60):
        altered = bytearray(whole)
        altered[generator.integers(len(whole))] = generator.integers(256)
        path.write_bytes(altered)
        try:
            list(Corpus([path]).documents())
        except InvalidRequest:
            num_refused += 1
    assert num_refused > 10


def test_a_large_row_group_is_read_in_bounded_memory(tmp_path):
    digits = np.random.default_rng(7).bytes(12 << 20).hex()
    column = [digits[start : start + 1_000] for start in range(0, len(digits), 1_000)]
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": column}), path, use_dictionary=False)
    assert path.stat().st_size > 20 << 20
    before = most = pa.total_allocated_bytes()
    for _ in Corpus([path]).documents():
        most = max(most, pa.total_allocated_bytes())
    assert most - before < 12 << 20


def test_inputs_that_are_not_there(tmp_path):
    with pytest.raises(MissingPath, match="nowhere"):
        Corpus([tmp_path / "nowhere.txt"])
    (tmp_path / "link.txt").symlink_to("nowhere")
    with pytest.raises(MissingPath, match="link"):
        Corpus([tmp_path / "link.txt"])


@pytest.mark.parametrize("name", ["a.png", "a.bin", "a.parquet.gz", "a.tar.zst", "a.gz"])
def test_an_unknown_suffix_is_refused_when_it_was_named(tmp_path, name):
    path = write(tmp_path / name, b"data")
    with pytest.raises(InvalidRequest, match=r"cannot tell how to read .*got suffix"):
        Corpus([path])
    with pytest.raises(InvalidRequest, match="no documents found"):
        Corpus([tmp_path])


def test_no_input_is_no_documents(tmp_path):
    for inputs in ([], [tmp_path]):
        with pytest.raises(InvalidRequest, match="no documents found"):
            Corpus(inputs)


def test_without_pyarrow_plain_text_is_read_and_the_rest_says_what_is_missing(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_pyarrow(name, *rest):
        if name.partition(".")[0] == "pyarrow":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pyarrow)
    assert texts(write(tmp_path / "a.txt", b"text")) == ["text"]
    assert texts(write(tmp_path / "a.jsonl", jsonl([{"text": "line"}]))) == ["line"]
    for name in ("a.parquet", "a.arrow", "a.jsonl.zst"):
        with pytest.raises(MissingDependency, match="pip install"):
            texts(write(tmp_path / name, b"data"))


# What cannot be read is passed over when that was asked, and told


DRIFTING = [{"text": "a"}, {"id": 1}, {"text": 7}, {"text": ["b"]}, {"text": None}, {"text": "c"}, [1]]


def left_out(corpus: Corpus) -> dict[str, tuple[int, bool]]:
    return {path.name: (skipped.num_rows, skipped.is_cut_short) for path, skipped in corpus.skipped.items()}


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zst)])
def test_rows_of_drifting_types_are_skipped_and_counted(tmp_path, caplog, suffix, pack):
    path = write(tmp_path / f"a.jsonl{suffix}", pack(jsonl(DRIFTING) + b"{\n"))
    with pytest.raises(InvalidRequest, match=rf"a\.jsonl{suffix}:2: no text"):
        texts(path)
    corpus = Corpus([path], on_error="skip")
    assert [document.text for document in corpus.documents()] == ["a", "c"]
    assert left_out(corpus) == {path.name: (5, False)}
    assert corpus.skipped[path].num_empty_rows == 1
    assert f"skipped of {path}: 5 rows, the first because {path}:2: no text" in caplog.text


def test_what_is_whole_is_not_told_about(tmp_path, caplog):
    corpus = Corpus([write(tmp_path / "a.jsonl", jsonl([{"text": "a"}]))], on_error="skip")
    assert [document.text for document in corpus.documents()] == ["a"]
    assert corpus.skipped == {}
    assert caplog.text == ""


@pytest.mark.parametrize("kind", TABLE_WRITERS)
def test_a_damaged_table_is_left_and_the_next_file_is_read(tmp_path, kind):
    name, write_table = TABLE_WRITERS[kind]
    path = write_table(tmp_path / name, pa.table({"text": [f"{n} {n * n}" for n in range(3_000)]}))
    path.write_bytes(path.read_bytes()[:20_000])
    write(tmp_path / "z.txt", b"after")
    corpus = Corpus([tmp_path], on_error="skip")
    assert [document.text for document in corpus.documents()][-1] == "after"
    assert left_out(corpus) == {name: (0, True)}
    assert "all from the damaged place on, the first because cannot read" in str(corpus.skipped[path])


def test_what_came_before_a_cut_is_kept(tmp_path):
    data = jsonl([{"text": f"{n} {n * n} {n * n * n}"} for n in range(6_000)])
    whole = gzip.compress(data)
    path = write(tmp_path / "a.jsonl.gz", whole[: len(whole) // 2])
    corpus = Corpus([path], on_error="skip")
    assert 300 < sum(1 for _ in corpus.documents()) < 5_900
    assert left_out(corpus) == {"a.jsonl.gz": (0, True)}


def test_the_wrong_word_for_errors_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="on_error is wrong; got ignore"):
        Corpus([write(tmp_path / "a.txt", b"a")], on_error="ignore")


def peak_bytes_of(run) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_huge_line_is_refused_or_passed_over_in_bounded_memory(tmp_path, monkeypatch):
    part = gzip.compress(b"x" * (4 << 20), compresslevel=1)
    path = write(tmp_path / "a.jsonl.gz", part * 50 + gzip.compress(b'\n{"text": "after"}\n'))

    def stop():
        with pytest.raises(InvalidRequest, match=r"a\.jsonl\.gz:1: the line is too long"):
            texts(path)

    assert peak_bytes_of(stop) < 3 * MAX_LINE_BYTES
    monkeypatch.setattr("retrieval_spec.datastore.readers.jsonl.MAX_LINE_BYTES", 1 << 20)
    corpus = Corpus([path], on_error="skip")
    found: list[str] = []
    assert peak_bytes_of(lambda: found.extend(d.text for d in corpus.documents())) < 8 << 20
    assert found == ["after"]
    assert left_out(corpus) == {path.name: (1, False)}


# Which files of a folder


TREE = ("a.py", "b.md", "tests/c.py", "docs/d.md", "docs/old/e.md", "docs/old/f.py", "Makefile")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, ["a.py", "b.md", "tests/c.py", "docs/d.md", "docs/old/e.md", "docs/old/f.py"]),
        ({"include": ["*.py"]}, ["a.py", "tests/c.py", "docs/old/f.py"]),
        ({"include": ["*.py"], "exclude": ["tests/**"]}, ["a.py", "docs/old/f.py"]),
        ({"include": ["*.py"], "exclude": ["tests"]}, ["a.py", "docs/old/f.py"]),
        ({"exclude": ["tests/"]}, ["a.py", "b.md", "docs/d.md", "docs/old/e.md", "docs/old/f.py"]),
        ({"include": ["docs/*.md"]}, ["docs/d.md"]),
        ({"include": ["docs/**/*.md"]}, ["docs/d.md", "docs/old/e.md"]),
        ({"include": ["docs"]}, ["docs/d.md", "docs/old/e.md", "docs/old/f.py"]),
        ({"include": ["docs"], "exclude": ["docs/old"]}, ["docs/d.md"]),
        ({"include": ["[ab].??", "Makefile"]}, ["a.py", "b.md", "Makefile"]),
        ({"include": ["**/[!ab].py"]}, ["tests/c.py", "docs/old/f.py"]),
        ({"exclude": ["*.*"]}, None),
    ],
    ids=str,
)
def test_files_are_chosen_by_patterns(tmp_path, options, found):
    for name in TREE:
        write(tmp_path / name, name.encode())
    if found is None:
        with pytest.raises(InvalidRequest, match="no documents found"):
            Corpus([tmp_path], **options)
    else:
        assert sorted(texts(tmp_path, **options)) == sorted(found)


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a.py", b"a")
    write(tmp_path / "locked" / "b.py", b"b")
    scandir = os.scandir

    def refuse_locked(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_locked)
    with pytest.raises(InvalidRequest, match=r"cannot read folder .*locked; got Permission denied"):
        Corpus([tmp_path])
    assert texts(tmp_path, exclude=["locked"]) == ["a"]


def test_patterns_do_not_touch_files_that_were_named(tmp_path):
    path = write(tmp_path / "a.py", b"a")
    assert texts(path, exclude=["*.py"], include=["*.md"]) == ["a"]


def test_the_facts_that_stand_beside_saved_tables_are_no_documents(tmp_path):
    folder = tmp_path / "saved"
    for name in ("dataset_dict.json", "train/state.json", "train/dataset_info.json"):
        write(folder / name, b'{"splits": ["train"]}')
    write_arrow_stream(folder / "train" / "data-00000-of-00001.arrow", pa.table({"text": TEXTS}))
    write(folder / "other" / "state.json", b"{}")
    assert texts(folder) == ["{}", *TEXTS]


# Licence headers


@pytest.mark.parametrize(
    ("name", "header", "rest"),
    [
        ("a.py", "# Copyright 2020 A. Author\n#\n# MIT License\n\n", "import os\n"),
        ("a.c", "/*\n * Licensed under the Apache Licence\n */\n\n", "/* adds */\nint add();\n"),
        ("a.rs", "// SPDX-License-Identifier: MIT\n", "use std::fs;\n"),
        ("a.go", "// Copyright X.\n// Use is governed by a license.\n\n/* (c) 2021 Y */\n", "package a\n"),
        ("a.html", "<!-- Copyright X -->\n", "<p>License</p>\n"),
        ("a.lua", "-- License: MIT\n", "return 1\n"),
        ("a.el", ";; Copyright\n", "(defun f ())\n"),
        ("a.tex", "% copyright\n", "\\begin{document}\n"),
        ("a.ml", "(* Copyright *)\n", "let x = 1\n"),
        ("a.py.gz", "# Licence\n", "x = 1\n"),
        ("a.c", "/* Copyright\r\n */\r\n\r\n", "int x;\r\n"),
        ("a.sh", "# Copyright\r\n\r\n", "echo\r\n"),
    ],
)
def test_a_licence_header_is_left_out_on_request(tmp_path, name, header, rest):
    pack = gzip.compress if name.endswith(".gz") else bytes
    path = write(tmp_path / name, pack((header + rest).encode()))
    assert texts(path) == [header + rest]
    assert texts(path, skip_licence_headers=True) == [rest]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "# Adds numbers.\n\nx = 1  # copyright\n"),
        ("a.py", '"""Copyright is in the docstring."""\n'),
        ("a.c", "#include <license.h>\n/* Copyright */\n"),
        ("a.c", "/* Copyright without an end\nint x;\n"),
        ("a.txt", "# Copyright\n"),
        ("a.py", "# Copyright\n" * 10_000),
        ("a.md", "# License\n\nMIT\n"),
    ],
)
def test_what_is_no_licence_header_stays(tmp_path, name, text):
    assert texts(write(tmp_path / name, text.encode()), skip_licence_headers=True) == [text]


def test_the_first_line_of_a_script_stays(tmp_path):
    path = write(tmp_path / "a.sh", b"#!/bin/sh\n# Copyright X\n\necho\n")
    assert texts(path, skip_licence_headers=True) == ["#!/bin/sh\necho\n"]
