from __future__ import annotations

import builtins
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval_spec.datastore.store import open_datastore
from retrieval_spec.datastore.tokenizer import check_same_tokenizer, fingerprint_of, load_tokenizer
from retrieval_spec.errors import InvalidRequest, MissingDependency, MissingPath, TokenizerMismatch
from tests.golden import GOLDEN

pytestmark = pytest.mark.row("F8")

LETTERS = "abcdefghijklmnopqrstuvwxyzĠ"
MERGES = [["a", "b"], ["c", "d"], ["ab", "cd"], ["Ġ", "ab"], ["e", "f"]]


def base() -> dict[str, Any]:
    """A small byte-level BPE as `tokenizers` writes it."""
    tokens = [*LETTERS, *("".join(pair) for pair in MERGES)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(32, "<|end|>"), added(33, "<|user|>")],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": copy.deepcopy(MERGES),
        },
    }


def added(index: int, content: str, special: bool = True) -> dict[str, Any]:
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def swap_ids(fields):
    vocab = fields["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def swap_merges(fields):
    merges = fields["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


def another_token(fields):
    vocab = fields["model"]["vocab"]
    vocab["q!"] = vocab.pop("q")


NEAR_MISSES = {
    "two ids swapped": swap_ids,
    "two merges swapped": swap_merges,
    "a merge less": lambda f: f["model"]["merges"].pop(),
    "a merge turned round": lambda f: f["model"]["merges"][0].reverse(),
    "a token renamed, same size": another_token,
    "a token more": lambda f: f["model"]["vocab"].update(zz=34),
    "an id moved past a gap": lambda f: f["model"]["vocab"].update(z=40),
    "an added token more": lambda f: f["added_tokens"].append(added(34, "<|tool|>")),
    "an added token less": lambda f: f["added_tokens"].pop(),
    "added tokens listed the other way round": lambda f: f["added_tokens"].reverse(),
    "an added token with another text": lambda f: f["added_tokens"][0].update(content="<|stop|>"),
    "added ids swapped": lambda f: [t.update(id=65 - t["id"]) for t in f["added_tokens"]],
    "an added token no longer special": lambda f: f["added_tokens"][0].update(special=False),
    "an added token that strips": lambda f: f["added_tokens"][0].update(lstrip=True),
    "an added token that is normalised": lambda f: f["added_tokens"][0].update(normalized=True),
    "another normaliser": lambda f: f["normalizer"].update(type="NFKC"),
    "no normaliser": lambda f: f.update(normalizer=None),
    "another pre-tokeniser": lambda f: f.update(pre_tokenizer={"type": "Whitespace"}),
    "no pre-tokeniser": lambda f: f.update(pre_tokenizer=None),
    "a prefix space": lambda f: f["pre_tokenizer"].update(add_prefix_space=True),
    "no regex": lambda f: f["pre_tokenizer"].update(use_regex=False),
    "byte fallback": lambda f: f["model"].update(byte_fallback=True),
    "ignored merges": lambda f: f["model"].update(ignore_merges=True),
    "an unknown token": lambda f: f["model"].update(unk_token="a"),
    "dropout": lambda f: f["model"].update(dropout=0.1),
    "a suffix at the end of words": lambda f: f["model"].update(end_of_word_suffix="z"),
}
SAME = {
    "nothing": lambda f: None,
    "the order of keys": lambda f: f.update(model=dict(reversed(f["model"].items()))),
    "the order of the vocabulary": lambda f: f["model"].update(
        vocab=dict(reversed(f["model"]["vocab"].items()))
    ),
    "merges as one text": lambda f: f["model"].update(
        merges=[" ".join(pair) for pair in f["model"]["merges"]]
    ),
    "defaults left out": lambda f: [
        f["model"].pop(k) for k in ("dropout", "fuse_unk", "ignore_merges", "unk_token")
    ],
    "a regex by default": lambda f: f["pre_tokenizer"].pop("use_regex"),
    "an empty prefix": lambda f: f["model"].update(continuing_subword_prefix=""),
    "offsets": lambda f: f["pre_tokenizer"].update(trim_offsets=False),
    "what stands around a text": lambda f: f.update(post_processor=None),
    "the way back": lambda f: f.update(decoder=None),
    "truncation": lambda f: f.update(
        truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    ),
}


def changed(change) -> dict[str, Any]:
    fields = base()
    change(fields)
    return fields


def write(path: Path, fields: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(json.dumps(fields))
    return path


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_has_another_fingerprint(name):
    assert fingerprint_of(changed(NEAR_MISSES[name])) != fingerprint_of(base())


def test_near_misses_differ_from_each_other():
    fingerprints = [fingerprint_of(changed(change)) for change in NEAR_MISSES.values()]
    assert len(set(fingerprints)) == len(NEAR_MISSES) >= 12


@pytest.mark.parametrize("name", SAME)
def test_what_changes_no_id_changes_no_fingerprint(tmp_path, name):
    one, other = (
        load_tokenizer(write(tmp_path / "one", base())),
        load_tokenizer(write(tmp_path / "other", changed(SAME[name]))),
    )
    assert one.fingerprint == other.fingerprint
    batch = ["abcd ab ef<|end|>abcd"]
    np.testing.assert_array_equal(one.encode_batch(batch)[0], other.encode_batch(batch)[0])


def test_white_space_of_the_file_changes_nothing(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(base(), indent=4, sort_keys=True))
    assert load_tokenizer(tmp_path).fingerprint == fingerprint_of(base())


def test_the_fingerprint_is_that_of_the_specification():
    """Computed once more from FORMAT.md; a changed value breaks every datastore in the field."""
    assert fingerprint_of(base()) == FINGERPRINT


FINGERPRINT = "sha256:16579929996e2519fed1b3abeddaa8889e2bb64a0730489205bc171ec354fc54"


def test_scores_of_other_models_count():
    unigram = base()
    unigram["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.5], ["b", -2.0]]}
    for change in (
        {"vocab": [["a", -1.5], ["b", -2.1]]},
        {"vocab": [["b", -2.0], ["a", -1.5]]},
        {"unk_id": None},
    ):
        other = copy.deepcopy(unigram)
        other["model"].update(change)
        assert fingerprint_of(other) != fingerprint_of(unigram)


def test_facts_let_a_person_recognise_it(tmp_path):
    facts = load_tokenizer(write(tmp_path, base())).facts
    assert (facts.model, facts.vocab_size, facts.num_added_tokens, facts.num_merges) == ("BPE", 34, 2, 5)
    assert (facts.normalizer, facts.pre_tokenizer) == ("NFC", "ByteLevel")
    sequence = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    nested = load_tokenizer(write(tmp_path, {**base(), "normalizer": sequence})).facts
    assert nested.normalizer == "Sequence(NFC, Lowercase)"


@pytest.mark.parametrize("ids", [(32, 33), (33, 32), (40, 41)])
def test_the_vocabulary_has_the_ids_that_the_library_gives(tmp_path, ids):
    fields = base()
    fields["added_tokens"] = [added(ids[0], "<|end|>"), added(ids[1], "<|user|>")]
    tokenizer = load_tokenizer(write(tmp_path, fields))
    given_ids = tokenizer.encode_batch(["<|end|><|user|>"])[0].tolist()
    assert tokenizer.vocab_size == max(given_ids) + 1


def test_texts_become_ids_without_anything_around_them(tmp_path):
    tokenizer = load_tokenizer(write(tmp_path, base()))
    first, empty, control = tokenizer.encode_batch(["abcd ab", "", "ab<|end|>"])
    assert first.dtype == np.int32
    assert first.tolist() == [29, 30]
    assert empty.tolist() == []
    assert control.tolist() == [27, 32]
    assert tokenizer.vocab_size == 34


def test_truncation_and_padding_of_the_file_are_off(tmp_path):
    fields = changed(SAME["truncation"])
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None}
    fields["padding"] = {**padding, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
    tokenizer = load_tokenizer(write(tmp_path, fields))
    assert tokenizer.encode_batch(["abc"])[0].tolist() == [27, 2]
    assert len(tokenizer.encode_batch(["e" * 50])[0]) == 50


def test_a_file_and_its_folder_are_the_same(tmp_path):
    folder = write(tmp_path / "model", base())
    (folder / "config.json").write_text(json.dumps({"vocab_size": 128}))  # a model padded to more ids
    assert load_tokenizer(folder).facts == load_tokenizer(folder / "tokenizer.json").facts
    assert load_tokenizer(str(folder)).vocab_size == 34


def test_a_datastore_of_another_tokenizer_is_refused(tmp_path):
    manifest = open_datastore(GOLDEN / "uint16").manifest
    tokenizer = load_tokenizer(write(tmp_path, base()))
    with pytest.raises(
        TokenizerMismatch, match=r"got BPE of 50000 ids.*expected BPE of 34 ids.*build it again"
    ):
        check_same_tokenizer(tokenizer, manifest, "somewhere")
    check_same_tokenizer(tokenizer, replace(manifest, tokenizer=tokenizer.facts), "somewhere")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b"\xff",
        b'{"model": null}',
        b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        b'{"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
        b'{"model": {"type": "Nothing", "vocab": {"a": 0}}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{"content": "x"}]}',
    ],
    ids=range(12),
)
def test_what_is_no_tokenizer_is_refused(tmp_path, data):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(InvalidRequest, match=r"tokenizer\.json is no tokenizer"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_is_a_missing_path(tmp_path):
    with pytest.raises(MissingPath, match="no such tokenizer"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(MissingPath, match="save_pretrained"):
        load_tokenizer(tmp_path)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_tokenizers(name, *rest):
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_tokenizers)
    with pytest.raises(MissingDependency, match=r"pip install 'retrieval-spec\[server\]'"):
        load_tokenizer(write(tmp_path, base()))


@pytest.mark.parametrize(("name", "vocab_size"), [("gpt2", 50_257), ("llama2", 32_000)])
def test_real_tokenizers(data_dir, tmp_path, name, vocab_size):
    from tokenizers import Tokenizer

    folder = data_dir / "tokenizers" / name
    tokenizer = load_tokenizer(folder)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "def f(x):\n    return x + 1  # čeština </s> <|endoftext|>\n"
    assert tokenizer.vocab_size == vocab_size
    assert tokenizer.encode_batch([text])[0].tolist() == library.encode(text, add_special_tokens=False).ids
    library.save(str(tmp_path / "tokenizer.json"))  # other white space, merges and defaults spelled anew
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
