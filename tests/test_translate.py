from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from retrieval_spec import translate as translate_module
from retrieval_spec.build import build_datastore
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.segments import Segments
from retrieval_spec.datastore.store import open_datastore, verify_datastore, write_datastore
from retrieval_spec.datastore.tokenizer import check_same_tokenizer, load_tokenizer
from retrieval_spec.drafters.corpus import CorpusDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.errors import (
    DatastoreCorrupt,
    DatastoreError,
    DatastoreExists,
    InvalidRequest,
    MissingPath,
    TokenizerMismatch,
)
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.translate import translate_datastore
from tests.fake_progress import InterruptedProgress, ToldProgress
from tests.golden import FILES

TEXTS = [
    "the cat sat on the mat, and the dog sat on the cat",
    "čeština: příliš žluťoučký kůň 🐎 úpěl ďábelské ódy",
    "def add(first, second):\n    return first + second\n\n\n" * 3,
    "a",
    "<|end|>the cat<|end|>",
]


def train_tokenizer(folder: Path, texts: list[str], vocab_size: int, normalizer=None) -> Path:
    """A real byte-level BPE with merges learned from the texts: every text survives it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken("<|end|>", normalized=False)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, Path]:
    from tokenizers import normalizers

    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "old": train_tokenizer(folder / "old", TEXTS[:2], 330),
        "new": train_tokenizer(folder / "new", TEXTS[2:], 290),
        "lower": train_tokenizer(folder / "lower", TEXTS, 280, normalizers.Lowercase()),
    }


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder of its own for the datastores, so that whatever is left behind shows."""
    (tmp_path / "stores").mkdir()
    return tmp_path / "stores"


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def built(out: Path, tokenizer: Path, texts: list[str] = TEXTS, **options) -> Path:
    lines = write_lines(out.parent.parent / "texts.jsonl", texts)
    return build_datastore(Corpus([lines]), tokenizer=tokenizer, out=out, **options)


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


@pytest.fixture
def translate(tokenizers):
    def run(store, **options):
        names = {"from_tokenizer": tokenizers["old"], "to_tokenizer": tokenizers["new"]}
        return translate_datastore(store, **{**names, **options})

    return run


def test_a_translation_is_what_the_text_gives(place, tokenizers, translate):
    old = built(place / "old", tokenizers["old"], name="Texts", depth_tokens=8)
    out = translate(old, out=place / "new")
    assert out == place / "new"
    direct = built(place / "direct", tokenizers["new"], name="Texts", depth_tokens=8)
    assert [(out / name).read_bytes() for name in FILES] == [(direct / name).read_bytes() for name in FILES]
    assert verify_datastore(out).num_documents == len(TEXTS)
    assert (old / "tokens.bin").read_bytes() != (out / "tokens.bin").read_bytes()


def test_drafts_come_in_the_new_ids(place, tokenizers, translate):
    out = translate(built(place / "old", tokenizers["old"]), out=place / "new")
    new = load_tokenizer(tokenizers["new"])
    context, whole = new.encode_batch(["the dog sat", "the dog sat on the cat"])
    engine = Engine(new.vocab_size, preset="corpus", datastores=[out])
    assert engine.datastores == {"new": new.fingerprint}
    tree = engine.open_session(context).draft(32)
    paths = {tuple(tree.token_ids[tree.path_to(node)].tolist()) for node in range(len(tree))}
    assert tuple(whole[len(context) :].tolist()) in paths


def test_batches_change_nothing(place, tokenizers, translate, monkeypatch):
    old = built(place / "old", tokenizers["old"], texts=TEXTS * 40)
    whole = translate(old, out=place / "whole")
    monkeypatch.setattr(translate_module, "_BATCH_TOKENS", 70)
    small = translate(old, out=place / "small", threads=1)
    assert [(whole / name).read_bytes() for name in FILES] == [(small / name).read_bytes() for name in FILES]


def test_documents_that_do_not_come_back_exactly_are_text_all_the_same(place, tokenizers, translate):
    """Half a character, and letters that were made small: other ids than the first time, but a corpus."""
    old = load_tokenizer(tokenizers["old"])
    horse = old.encode_batch(["🐎"])[0]
    assert len(horse) > 1
    separator = 2**16 - 1
    array = ContextArray.build(np.array([*horse[:1], separator, *horse, separator], np.uint16))
    facts = dataclasses.replace(
        translate_module.facts_of("half", old, array.depth_tokens), created_by="somebody else"
    )
    columns = {**array.columns(), "documents": np.array([0, 2], np.int64)}
    write_datastore(place / "half", facts, columns)
    out = translate(place / "half", out=place / "new")
    tokens = open_datastore(out).columns["tokens"]
    new = load_tokenizer(tokenizers["new"])
    assert new.decode_batch([tokens[: tokens.tolist().index(separator)]]) == ["\ufffd"]

    lower = built(place / "lower", tokenizers["lower"], texts=["The Cat", "DEF"])
    out = translate(lower, from_tokenizer=tokenizers["lower"], out=place / "small")
    expected = built(place / "expected", tokenizers["new"], texts=["the cat", "def"])
    assert (out / "tokens.bin").read_bytes() == (expected / "tokens.bin").read_bytes()


def test_every_stage_is_told(place, tokenizers, translate):
    told = ToldProgress()
    translate(built(place / "old", tokenizers["old"]), out=place / "new", progress=told)
    stages = [stage for stage, *_ in told.stages]
    assert stages == ["checksums", "structure", "translating", "sorting", "writing"]
    assert told.is_complete()


# The place that nobody named


def test_a_translation_is_kept_beside_the_old_one_and_used_again(place, tokenizers, translate, monkeypatch):
    old = built(place / "old", tokenizers["old"])
    first = translate(old)
    assert first.parent == place
    assert first.name.startswith("old.")
    assert names(place) == ["old", first.name]
    with monkeypatch.context() as patched:
        patched.setattr(translate_module, "only_part", None)
        assert translate(str(old)) == first
    to_lower = translate(old, to_tokenizer=tokenizers["lower"])
    assert to_lower not in (old, first)
    built(old, tokenizers["old"], texts=TEXTS[:1], replace=True)
    other = translate(old)
    assert other not in (first, to_lower)
    assert open_datastore(other).manifest.num_documents == 1


def test_what_is_kept_can_be_built_anew(place, tokenizers, translate):
    old = built(place / "old", tokenizers["old"])
    first = translate(old)
    (first / "tokens.bin").write_bytes(b"")
    with pytest.raises(DatastoreCorrupt):
        translate(old)
    assert translate(old, replace=True) == first
    verify_datastore(first)


def test_of_two_processes_the_slower_one_uses_the_other_ones_work(place, tokenizers, translate, monkeypatch):
    write = translate_module.write_alone

    def twice(*arguments):
        write(*arguments)
        write(*arguments)

    monkeypatch.setattr(translate_module, "write_alone", twice)
    old = built(place / "old", tokenizers["old"], replace=True)
    first = translate(old)
    verify_datastore(first)
    assert names(place) == ["old", first.name]
    with pytest.raises(DatastoreExists):
        translate(old, out=place / "named")


def test_a_strange_datastore_in_that_place_is_refused(place, tokenizers, translate):
    old = built(place / "old", tokenizers["old"])
    kept = translate(old)
    built(kept, tokenizers["lower"], replace=True)
    with pytest.raises(TokenizerMismatch, match="remove it"):
        translate(old)


# Bad input


def test_the_wrong_old_tokenizer_is_refused(place, tokenizers, translate):
    old = built(place / "old", tokenizers["old"])
    with pytest.raises(TokenizerMismatch, match="name the tokenizer that it was built with"):
        translate(old, from_tokenizer=tokenizers["lower"], out=place / "new")
    assert names(place) == ["old"]


def test_the_same_tokenizer_is_refused(place, tokenizers, translate):
    old = built(place / "old", tokenizers["old"])
    with pytest.raises(InvalidRequest, match="as it is"):
        translate(old, to_tokenizer=tokenizers["old"])


@pytest.mark.parametrize("missing", ["store", "from_tokenizer", "to_tokenizer"])
def test_a_missing_folder_is_a_missing_path(place, tokenizers, translate, missing):
    old = built(place / "old", tokenizers["old"])
    nowhere = place / "nowhere"
    options = {"out": place / "new"} | ({missing: nowhere} if missing != "store" else {})
    with pytest.raises(MissingPath, match="nowhere"):
        translate(nowhere if missing == "store" else old, **options)
    with pytest.raises(MissingPath, match="create it first"):
        translate(old, out=nowhere / "new")
    assert names(place) == ["old"]


def test_a_taken_place_gives_way_only_when_asked(place, tokenizers, translate):
    old = built(place / "old", tokenizers["old"])
    with pytest.raises(DatastoreExists):
        translate(old, out=old)
    (place / "mine").mkdir()
    with pytest.raises(DatastoreError, match="no datastore"):
        translate(old, out=place / "mine", replace=True)
    assert translate(old, out=old, replace=True) == old
    assert open_datastore(old).manifest.tokenizer == load_tokenizer(tokenizers["new"]).facts


def test_altered_ids_are_found_before_they_become_text(place, tokenizers, translate):
    old = built(place / "old", tokenizers["old"])
    data = bytearray((old / "tokens.bin").read_bytes())
    data[0] ^= 1
    (old / "tokens.bin").write_bytes(data)
    with pytest.raises(DatastoreCorrupt, match="altered"):
        translate(old, out=place / "new")
    assert names(place) == ["old"]


def test_other_kinds_of_datastores_and_empty_ones_are_refused(place, tokenizers, translate, monkeypatch):
    old = built(place / "old", tokenizers["old"])
    with pytest.raises(InvalidRequest, match="threads"):
        translate(old, threads=0)
    store = open_datastore(old)
    other = dataclasses.replace(store, manifest=dataclasses.replace(store.manifest, kind="dense"))
    dense = Segments(old, 0, (other,))
    with monkeypatch.context() as patched:
        patched.setattr(translate_module, "open_segments", lambda path: dense)
        with pytest.raises(InvalidRequest, match="of kind dense"):
            translate(old)
    array = ContextArray.build(np.zeros(0, np.int32))
    facts = translate_module.facts_of("empty", load_tokenizer(tokenizers["old"]), array.depth_tokens)
    write_datastore(place / "empty", facts, {**array.columns(), "documents": np.zeros(0, np.int64)})
    with pytest.raises(InvalidRequest, match="no text"):
        translate(place / "empty")
    assert names(place) == ["empty", "old"]


@pytest.mark.parametrize("stage", ["checksums", "translating", "sorting", "writing"])
def test_an_interrupt_in_any_stage_leaves_nothing(place, tokenizers, translate, stage):
    old = built(place / "old", tokenizers["old"])
    with pytest.raises(KeyboardInterrupt):
        translate(old, progress=InterruptedProgress(stage))
    assert names(place) == ["old"]


def test_a_refusal_names_the_command_that_translates(place, tokenizers):
    old = built(place / "old", tokenizers["old"])
    with pytest.raises(TokenizerMismatch, match="build --from-datastore DIR --from-tokenizer"):
        check_same_tokenizer(load_tokenizer(tokenizers["new"]), open_datastore(old).manifest, old)
    with pytest.raises(TokenizerMismatch, match="build --from-datastore DIR --from-tokenizer"):
        CorpusDrafter.open(10, old)


@pytest.mark.parametrize(("old", "new"), [("gpt2", "qwen2"), ("llama2", "gpt2"), ("qwen2", "llama2")])
def test_real_tokenizers_translate_real_text(place, data_dir, old, new):
    with (data_dir / "corpora" / "chat_20mb.jsonl").open() as lines:
        texts = [json.loads(next(lines))["output"] for _ in range(60)]
    folder = data_dir / "tokenizers"
    store = built(place / "old", folder / old, texts=texts)
    out = translate_datastore(store, from_tokenizer=folder / old, to_tokenizer=folder / new)
    direct = built(place / "direct", folder / new, texts=texts)
    assert (out / "tokens.bin").read_bytes() == (direct / "tokens.bin").read_bytes()
