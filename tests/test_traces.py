"""Recorded generations in the forms that people have them, and what is said of lines that are none."""

from __future__ import annotations

import gzip
import json

import pytest

from retrieval_spec.datastore.tokenizer import load_tokenizer
from retrieval_spec.errors import InvalidRequest, MissingPath
from retrieval_spec.traces import Trace, TraceReader
from tests.conftest import REPOSITORY

TOKENIZER = REPOSITORY / "retrieval_spec" / "demo_model"
CHAT = [{"role": "user", "content": "add one"}, {"role": "assistant", "content": "return x + 1"}]


def read(path, rows, tokenizer=None, vocab_size=4_096) -> list[Trace]:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return list(TraceReader(tokenizer, vocab_size).read(path, lambda num_bytes: None))


def lists(trace: Trace) -> tuple[str, list[int], list[int]]:
    return trace.family, trace.prompt.tolist(), trace.output.tolist()


def test_ids_are_taken_as_they_stand_and_the_family_is_the_file_s_unless_the_line_says(tmp_path):
    rows = [{"prompt_ids": [1, 2], "output_ids": [3]}, {"output_ids": [4], "family": "chat"}]
    assert list(map(lists, read(tmp_path / "code.jsonl", rows))) == [("code", [1, 2], [3]), ("chat", [], [4])]


def test_compressed_files_are_read(tmp_path):
    path = tmp_path / "code.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"output_ids": [5, 6]}\n'))
    told: list[int] = []
    (trace,) = TraceReader(None).read(path, told.append)
    assert lists(trace) == ("code", [], [5, 6])
    assert sum(told) == path.stat().st_size


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "add one\n\n", "output": "return x + 1"},
        {"messages": CHAT},
        {"request": {"messages": CHAT[:1]}, "response": {"choices": [{"message": CHAT[1]}]}},
        {"request": {"prompt": "add one\n\n"}, "response": {"choices": [{"text": "return x + 1"}]}},
    ],
    ids=["text", "messages", "exchange", "completion"],
)
def test_text_is_cut_where_the_output_begins(tmp_path, row):
    tokenizer = load_tokenizer(TOKENIZER)
    (trace,) = read(tmp_path / "t.jsonl", [row], tokenizer)
    prompt, output = tokenizer.decode_batch([trace.prompt[len(tokenizer.prefix_ids()) :], trace.output])
    assert output == "return x + 1"
    assert prompt == "add one\n\n"
    assert trace.prompt[: len(tokenizer.prefix_ids())].tolist() == tokenizer.prefix_ids().tolist()


def test_a_logged_exchange_may_hold_the_ids(tmp_path):
    response = {"choices": [{"token_ids": [3, 4]}], "prompt_token_ids": [1, 2]}
    rows = [{"request": {}, "response": response}, {"request": "{}", "response": json.dumps(response)}]
    assert list(map(lists, read(tmp_path / "t.jsonl", rows))) == [("t", [1, 2], [3, 4])] * 2


def write_parquet(table, path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(table, path, row_group_size=2)


def write_arrow(table, path) -> None:
    ipc = pytest.importorskip("pyarrow.ipc")
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(("name", "write"), [("code.parquet", write_parquet), ("code.Arrow", write_arrow)])
def test_tables_are_read_as_lines_are(tmp_path, name, write):
    pyarrow = pytest.importorskip("pyarrow")
    rows = [
        {"prompt_ids": [1, 2], "output_ids": [3], "family": None},
        {"prompt_ids": None, "output_ids": [4], "family": "chat"},
        {"messages": CHAT},
        {"request": {"messages": CHAT[:1]}, "response": {"choices": [{"message": CHAT[1]}]}},
        {"prompt": "add one\n\n", "output": "return x + 1"},
        {"prompt": "nothing came of it"},
    ]
    names = {name: None for row in rows for name in row}
    table = pyarrow.Table.from_pylist([{**names, **row, "model": "not of a trace"} for row in rows])
    write(table, tmp_path / name)
    tokenizer, told = load_tokenizer(TOKENIZER), []
    traces = list(map(lists, TraceReader(tokenizer).read(tmp_path / name, told.append)))
    assert traces[:2] == [("code", [1, 2], [3]), ("chat", [], [4])]
    assert traces[2] == traces[3] == traces[4] == lists(*read(tmp_path / "code.jsonl", [rows[2]], tokenizer))
    assert traces[5] == ("code", [], [])
    assert sum(told) == (tmp_path / name).stat().st_size


def test_a_table_without_traces_is_named(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    write_parquet(pyarrow.table({"text": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(InvalidRequest, match="no trace; got text; expected output_ids"):
        list(TraceReader(None).read(tmp_path / "t.parquet", lambda num_bytes: None))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1], "no object"),
        ({"text": "a"}, "no trace; got text; expected output_ids"),
        ({"output": "a"}, "text, and no tokenizer; give --tokenizer"),
        ({"output_ids": [5_000]}, "5000"),
        ({"output_ids": ["a"]}, "token ids"),
        ({"messages": []}, "without messages"),
        ({"messages": 5}, "no conversation"),
        ({"request": {"messages": []}, "response": {}}, "no exchange"),
    ],
    ids=["list", "fields", "text", "ids", "strings", "empty", "number", "exchange"],
)
def test_lines_that_are_none_are_named(tmp_path, row, words):
    with pytest.raises(InvalidRequest, match=r"t\.jsonl:1") as raised:
        read(tmp_path / "t.jsonl", [row])
    assert words in str(raised.value)


def test_what_is_no_json_and_what_is_not_there_is_said(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"output_ids": [1]}\n{"output_ids"\n')
    with pytest.raises(InvalidRequest, match=r"t\.jsonl:2: not JSON"):
        list(TraceReader(None).read(tmp_path / "t.jsonl", lambda num_bytes: None))
    with pytest.raises(MissingPath, match="no file"):
        list(TraceReader(None).read(tmp_path / "none.jsonl", lambda num_bytes: None))
