"""Recorded conversations: what is read, and how it is spelled with and without a chat template."""

from __future__ import annotations

import builtins
import gzip
import json
import shutil
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from retrieval_spec.build import build_datastore
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.readers import json_array
from retrieval_spec.datastore.store import open_datastore
from retrieval_spec.datastore.tokenizer import load_tokenizer
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.errors import InvalidInput, InvalidRequest, MissingDependency

transformers = pytest.importorskip("transformers")

OPENAI = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
]
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Hello"},
    {"from": "gpt", "value": "Hi!"},
]
PARTS = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in OPENAI]
PLAIN = "Be brief.\n\nHello\n\nHi!"
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'judge' %}{{ raise_exception('no judges') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}"
    "{% for call in message.tool_calls %}[{{ call.function.name }} {{ call.function.arguments.city }}]"
    "{% endfor %}"
    "{{ eos_token }}{% endfor %}"
)
SPELLED = "<|system|>Be brief.<|endoftext|><|user|>Hello<|endoftext|><|assistant|>Hi!<|endoftext|>"


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(*inputs: Path, tokenizer=None, **options) -> list[str]:
    return [document.text for document in Corpus(inputs, **options).documents(tokenizer=tokenizer)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder with a chat template."""
    folder = tmp_path_factory.mktemp("model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model_dir() / name, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return folder


@pytest.mark.parametrize(
    "row",
    [
        {"messages": OPENAI},
        {"messages": PARTS},
        {"conversations": SHAREGPT},
        {"conversations": OPENAI},
        {"messages": OPENAI, "content": "other"},
    ],
)
def test_conversations_lose_their_roles_without_a_template_and_keep_them_with_one(tmp_path, model, row):
    path = lines(tmp_path / "a.jsonl", row)
    table = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist([row]), table)
    assert texts(path, table) == [PLAIN, PLAIN]
    assert texts(path, tokenizer=load_tokenizer(demo_model_dir())) == [PLAIN]
    assert texts(path, table, tokenizer=load_tokenizer(model)) == [SPELLED, SPELLED]


# In one array


@pytest.mark.parametrize("part_characters", [16, 100, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_conversations_in_one_array_are_rows(tmp_path, monkeypatch, part_characters, indent):
    monkeypatch.setattr(json_array, "_PART_CHARACTERS", part_characters)
    rows = [{"id": "é", "conversations": SHAREGPT}, {"messages": OPENAI}, {"conversations": []}]
    path = tmp_path / "a.json"
    path.write_text("\ufeff \n" + json.dumps(rows, indent=indent) + "\n")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    corpus = Corpus([tmp_path])
    told: list[int] = []
    assert [document.text for document in corpus.documents(told.append)] == [PLAIN] * 4
    assert sum(told) == corpus.num_bytes


@pytest.mark.parametrize(
    "text",
    ['{"messages": []}', "[]", '[1, {"messages": []}]', '[{"name": "a"}]', "[{", '["messages"]', "[" * 9_000],
)
def test_other_json_is_text(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert texts(tmp_path) == [text]


def test_an_array_is_read_by_the_field_that_was_named(tmp_path):
    (tmp_path / "a.json").write_text('[{"body": "one"}, {"body": "two"}]')
    assert texts(tmp_path / "a.json", text_field="body") == ["one", "two"]


def test_a_damaged_array_is_named_or_read_up_to_there(tmp_path, monkeypatch):
    whole = json.dumps([{"messages": OPENAI}] * 40 + [7] + [{"messages": OPENAI}] * 40)
    path = tmp_path / "a.json"
    path.write_text(whole)
    with pytest.raises(InvalidRequest, match=r"a\.json: element 40: no object; got int"):
        texts(path)
    assert texts(path, on_error="skip") == [PLAIN] * 80
    path.write_text(whole[: len(whole) * 3 // 4])
    corpus = Corpus([path], on_error="skip")
    assert [document.text for document in corpus.documents()] == [PLAIN] * 60
    assert "element 40" in str(corpus.skipped[path])
    path.write_text(whole.replace("7, ", "") + " \n" * 900_000 + "[]")
    with pytest.raises(InvalidRequest, match=r"a\.json: something behind the array; got '\[\]'"):
        texts(path)
    assert (corpus.skipped[path].num_rows, corpus.skipped[path].is_cut_short) == (1, True)


def test_an_element_without_end_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_array, "MAX_ELEMENT_CHARACTERS", 1 << 20)
    path = tmp_path / "a.json"
    path.write_text('[{"messages": []}, {"messages": "' + "x" * (32 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="element 1: not JSON, cut off or too long"):
            texts(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 24 << 20


def test_a_template_in_a_file_of_its_own_is_found(tmp_path, model):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model_dir() / name, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    path = lines(tmp_path / "a.jsonl", {"messages": OPENAI})
    assert texts(path, tokenizer=load_tokenizer(tmp_path / "tokenizer.json")) == [SPELLED]


def test_control_tokens_of_the_template_become_their_ids(tmp_path, model):
    path = lines(tmp_path / "a.jsonl", {"messages": OPENAI})
    build_datastore(Corpus([path]), tokenizer=model, out=tmp_path / "store")
    tokenizer = load_tokenizer(model)
    (end,) = tokenizer.encode_batch(["<|endoftext|>"])[0]
    assert open_datastore(tmp_path / "store").columns["tokens"].tolist().count(end) == 3


CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Brno"}'}}


def test_tool_calls_are_kept(tmp_path, model):
    path = lines(
        tmp_path / "a.jsonl", {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]}
    )
    assert texts(path, tokenizer=load_tokenizer(model)) == ["<|assistant|>[weather Brno]<|endoftext|>"]
    (plain,) = texts(path)
    assert json.loads(plain) == [{**CALL, "function": {"name": "weather", "arguments": {"city": "Brno"}}}]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Hello", "no conversation; got str"),
        ([7], "message 0 is none; got 7"),
        ([{"content": "a"}], "message 0 is none"),
        ([OPENAI[0], {"role": 7, "content": "a"}], "message 1 is none"),
        ([{"role": "user", "content": 7}], "message 0 is no text; got int"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 0 holds something else than text"),
        ([{"role": "user", "content": "a", "tool_calls": [7]}], "message 0: a tool call without function"),
        ([{"role": "judge", "content": "a"}], "the chat template refuses the conversation; got no judges"),
    ],
)
def test_a_conversation_that_is_none_is_named_or_passed_over(tmp_path, model, messages, said):
    path = lines(tmp_path / "a.jsonl", {"messages": OPENAI}, {"messages": messages}, {"messages": None})
    tokenizer = load_tokenizer(model)
    with pytest.raises(InvalidRequest, match=rf"a\.jsonl:2: {said}"):
        texts(path, tokenizer=tokenizer)
    corpus = Corpus([path], on_error="skip")
    assert [document.text for document in corpus.documents(tokenizer=tokenizer)] == [SPELLED]
    assert corpus.skipped[path].num_rows == 1
    assert corpus.skipped[path].num_empty_rows == 1


def test_a_named_field_may_hold_a_conversation_or_ids(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"dialogue": OPENAI, "ids": [4, 5]})
    assert texts(path, text_field="dialogue") == [PLAIN]
    (document,) = Corpus([path], text_field="ids").documents()
    assert document.token_ids.tolist() == [4, 5]


def test_a_template_without_transformers_says_what_is_missing(tmp_path, model, monkeypatch):
    path = lines(tmp_path / "a.jsonl", {"messages": OPENAI})
    real = builtins.__import__

    def without_transformers(name, *rest):
        if name.partition(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_transformers)
    with pytest.raises(MissingDependency, match=r"transformers is not installed.*pip install"):
        texts(path, tokenizer=load_tokenizer(model), on_error="skip")
    assert texts(path, tokenizer=load_tokenizer(demo_model_dir())) == [PLAIN]


@pytest.mark.parametrize(
    "config", ["{", "[]", '{"chat_template": "{% if", "tokenizer_class": "NoSuchClass"}']
)
def test_a_model_folder_that_cannot_be_read_stops_the_reading(tmp_path, config):
    shutil.copy(demo_model_dir() / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config)
    path = lines(tmp_path / "a.jsonl", {"messages": OPENAI})
    with pytest.raises(InvalidInput, match=r"tokenizer_config\.json|the chat template refuses"):
        texts(path, tokenizer=load_tokenizer(tmp_path))


def test_a_model_folder_of_a_tokenizer_alone_has_no_template(tmp_path):
    shutil.copy(demo_model_dir() / "tokenizer.json", tmp_path)
    path = lines(tmp_path / "a.jsonl", {"messages": OPENAI})
    assert texts(path, tokenizer=load_tokenizer(tmp_path)) == [PLAIN]


def test_a_template_without_a_tokenizer_that_transformers_opens_is_named(tmp_path):
    shutil.copy(demo_model_dir() / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    path = lines(tmp_path / "a.jsonl", {"messages": OPENAI})
    with pytest.raises(InvalidInput, match=r"transformers cannot open the tokenizer in .*; got"):
        texts(path, tokenizer=tokenizer)


def test_what_templates_need_is_named(tmp_path, model, monkeypatch):
    def without_jinja(*_, **__):
        raise ImportError("apply_chat_template requires jinja2 to be installed")

    monkeypatch.setattr(transformers.PreTrainedTokenizerBase, "apply_chat_template", without_jinja)
    path = lines(tmp_path / "a.jsonl", {"messages": OPENAI})
    with pytest.raises(MissingDependency, match=r"chat templates need jinja2.*pip install jinja2"):
        texts(path, tokenizer=load_tokenizer(model))


# Recorded outputs


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"id": "1", "family": "code", "prompt_ids": [1, 2], "output_ids": [3]}, [1, 2, 3]),
        ({"prompt_ids": None, "output_ids": [3]}, [3]),
        ({"output_ids": [3, 4], "output": "text", "prompt": "text"}, [3, 4]),
        ({"input_ids": [5], "attention_mask": [1]}, [5]),
    ],
)
def test_recorded_ids_are_kept_as_they_are(tmp_path, row, found):
    path = lines(tmp_path / "a.jsonl", row)
    table = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist([row]), table)
    documents = list(Corpus([path, table]).documents())
    assert [document.token_ids.tolist() for document in documents] == [found, found]
    assert all(document.text is None for document in documents)


@pytest.mark.parametrize(
    ("output_ids", "said"),
    [
        ("text", "'output_ids' holds no token ids; got str"),
        ([1.5], "token ids need an integer type"),
        (["1"], "token ids need an integer type"),
        ([[1]], "token ids need one dimension"),
        ([1, [2]], "token ids are not a flat list"),
        ([-1], "outside the vocabulary; got -1"),
        ([2**80], "token ids"),
        ([None], "token ids need an integer type"),
        ([True], "token ids need an integer type"),
    ],
)
def test_ids_that_are_none_are_named_or_passed_over(tmp_path, output_ids, said):
    path = lines(tmp_path / "a.jsonl", {"output_ids": [1]}, {"output_ids": output_ids})
    with pytest.raises(InvalidRequest, match=rf"a\.jsonl:2: .*{said}"):
        list(Corpus([path]).documents())
    corpus = Corpus([path], on_error="skip")
    assert [document.token_ids.tolist() for document in corpus.documents()] == [[1]]
    assert corpus.skipped[path].num_rows == 1


def test_real_traces_are_read_as_they_were_recorded(data_dir):
    path = data_dir / "tok_qwen2" / "code.jsonl"
    tokenizer = load_tokenizer(data_dir / "tokenizers" / "qwen2")
    with path.open() as file:
        rows = [json.loads(line) for _, line in zip(range(20), file, strict=False)]
    documents = Corpus([path]).documents(tokenizer=tokenizer)
    for row, document in zip(rows, documents, strict=False):
        assert document.token_ids.tolist() == row["prompt_ids"] + row["output_ids"]
