"""Dense datastores that grow: many segments draft as one, whatever was added, removed and joined."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest

faiss = pytest.importorskip("faiss")
# ruff: noqa: E402
from retrieval_spec import dense_grow
from retrieval_spec.cli import main
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.documents import Documents
from retrieval_spec.datastore.generation import GENERATION_NAME
from retrieval_spec.datastore.manifest import Facts
from retrieval_spec.datastore.segments import changing, open_segments, verify_segments
from retrieval_spec.datastore.store import open_datastore
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.dense_grow import append_states
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.dense import DenseDrafter
from retrieval_spec.errors import (
    DatastoreCorrupt,
    InvalidRequest,
    ModelMismatch,
    TokenizerMismatch,
)
from retrieval_spec.feedback import Feedback
from retrieval_spec.grow import compact, remove_documents
from retrieval_spec.structures import dense_index
from retrieval_spec.structures.dense_index import DenseIndex
from tests.golden import change_column
from tests.kills import SEAMS, run_until
from tests.stores import MODEL, identity, write_dense
from tests.word_tokenizers import write_tokenizer

VOCAB_SIZE, DIMENSIONS = 12, 8
RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.integers(0, VOCAB_SIZE, RNG.integers(1, 30)).tolist() for _ in range(40)]
EDGES = (0, 20, 21, 33, 40)
CENTRES = RNG.normal(size=(9, DIMENSIONS))


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def states_of(documents):
    """A state for every token that has one before it, made of that token and no more: many are alike."""
    rows = [
        CENTRES[token % 9] + 0.1 * CENTRES[(token + at) % 7]
        for d in documents
        for at, token in enumerate(d)
        if at
    ]
    return unit(np.array(rows).reshape(-1, DIMENSIONS))


def facts_of(store):
    return Facts(**{field: getattr(store.manifest, field) for field in Facts.__dataclass_fields__})


@pytest.fixture(params=["flat", "lists"])
def trained(request, monkeypatch):
    """An index that was trained on the first documents alone."""
    if request.param == "lists":
        monkeypatch.setattr(dense_index, "MAX_FLAT", 100)
        monkeypatch.setattr(dense_index, "_TRAINING_PER_LIST", 1)
    index = DenseIndex.build(states_of(DOCUMENTS[:20]))
    assert hasattr(index._index, "invlists") == (request.param == "lists")
    return index


def write_grown(path, trained, groups, dtype=np.uint16):
    """The first group as the store's own folder, every other one as a segment."""
    write_dense(path, groups[0], VOCAB_SIZE, states_of(groups[0]), dtype, trained=trained)
    for number, group in enumerate(groups[1:]):
        dtype = (np.uint16, np.int32)[number % 2]
        other = write_dense(
            path.with_name(f"{path.name}{number}"),
            group,
            VOCAB_SIZE,
            states_of(group),
            dtype,
            trained=trained,
        )
        store = open_datastore(other)
        with changing(path) as change:
            change.publish([*change.entries, change.write(facts_of(store), store.columns)])
    return path


@pytest.fixture
def grown(tmp_path, trained):
    groups = [DOCUMENTS[start:stop] for start, stop in pairwise(EDGES)]
    return write_grown(tmp_path / "grown", trained, groups)


def drafts(path, seed=1):
    """What a store drafts at 200 states; enough of it is no empty draft."""
    rng = np.random.default_rng(seed)
    drafter, drafted = DenseDrafter.open(100_000, path), []
    for _ in range(200):
        cursor = drafter.start(np.zeros(0, np.int32))
        root = int(rng.integers(0, VOCAB_SIZE))
        state = unit(CENTRES[root % 9] + 0.3 * rng.normal(size=DIMENSIONS))
        cursor.observe(np.array([root], np.int32), Feedback(hidden_state=state))
        tree = cursor.propose(Budget(24)).check(VOCAB_SIZE)
        drafted.append((tree.token_ids.tolist(), tree.parents.tolist(), tree.probs.tolist()))
    assert sum(bool(tokens) for tokens, _, _ in drafted) > 100
    return drafted


def test_a_store_that_grew_drafts_as_one_built_at_once(tmp_path, trained, grown):
    whole = write_grown(tmp_path / "whole", trained, [DOCUMENTS])
    assert len(open_segments(grown).stores) == 4
    verify_segments(grown)
    assert drafts(grown) == drafts(whole)


def test_a_compacted_store_has_the_bytes_of_one_built_at_once(tmp_path, trained, grown):
    before = drafts(grown)
    assert compact(grown, threads=1).num_segments == 1
    verify_segments(grown)
    assert drafts(grown) == before
    whole = open_segments(write_grown(tmp_path / "whole", trained, [DOCUMENTS], np.int32)).only.columns
    compacted = open_segments(grown).only.columns
    for name, column in whole.items():
        assert compacted[name].tolist() == column.tolist()


def test_what_is_removed_is_gone_and_the_rest_drafts_as_before(tmp_path, trained, grown):
    ids = [
        id_
        for store in open_segments(grown).stores
        for id_ in Documents.from_columns(store.columns).ids.tolist()
    ]
    gone = {0, 5, 20, 25, 39}  # the second segment has one document: it goes as a whole
    changed = remove_documents(grown, ids=[ids[number] for number in gone])
    assert changed.num_removed == len([id_ for id_ in ids if id_ in {ids[number] for number in gone}])
    verify_segments(grown)
    stores = open_segments(grown).stores
    left = [
        token_ids.tolist()
        for store in stores
        for token_ids, _ in Documents.from_columns(store.columns).each()
    ]
    wanted = [
        document for number, document in enumerate(DOCUMENTS) if ids[number] not in {ids[n] for n in gone}
    ]
    assert sorted(left) == sorted(wanted)
    assert drafts(grown) == drafts(write_grown(tmp_path / "whole", trained, [left]))


def test_a_separator_that_is_an_id_of_a_large_vocabulary_is_not_drafted(tmp_path):
    documents = [[1, 5], [2, 6, 7]]  # on disk: 1 5 65535 2 6 7 65535
    store = write_dense(tmp_path / "store", documents, 100_000, np.eye(3, 4, dtype=np.float32), np.uint16)
    cursor = DenseDrafter.open(100_000, store).start(np.zeros(0, np.int32))
    cursor.observe(np.array([5], np.int32), Feedback(hidden_state=np.eye(3, 4, dtype=np.float32)[0]))
    assert len(cursor.propose(Budget(8))) == 0


# Damage


def second_segment(store):
    return open_segments(store).stores[1].path


@pytest.mark.row("F7")
@pytest.mark.parametrize("where", [0, 4, 60, -1])
def test_an_altered_index_of_a_later_segment_is_refused_before_it_is_read(grown, where, monkeypatch):
    file = second_segment(grown) / "index.bin"
    data = bytearray(file.read_bytes())
    data[where] ^= 1
    file.write_bytes(data)
    read = []
    plain = faiss.deserialize_index
    monkeypatch.setattr("faiss.deserialize_index", lambda data: read.append(data) or plain(data))
    for use in (lambda: DenseDrafter.open(100, grown), lambda: compact(grown, threads=1)):
        read.clear()
        with pytest.raises(DatastoreCorrupt, match=r"index\.bin was altered"):
            use()
        assert len(read) <= 1  # the first segment's
    with pytest.raises(DatastoreCorrupt, match=r"index\.bin was altered"):
        verify_segments(grown)


def adopt_second_segment(store, change):
    """A writer that lists a second segment which does not fit the first."""
    place = second_segment(store)
    change(place)
    manifest = place / "manifest.json"
    fields = json.loads((store / GENERATION_NAME).read_text())
    fields["segments"]["1"]["manifest_sha256"] = hashlib.sha256(manifest.read_bytes()).hexdigest()
    fields["generation_sha256"] = "0" * 64
    data = (json.dumps(fields, indent=2) + "\n").encode()
    sealed = data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode())
    (store / GENERATION_NAME).write_bytes(sealed)


def test_a_segment_of_another_training_or_projection_is_refused(tmp_path, grown):
    other = DenseIndex.build(0.5 * states_of(DOCUMENTS[:7]))
    num_vectors = len(open_segments(grown).stores[1].columns["positions"])
    lying = other.with_vectors(states_of(DOCUMENTS)[:num_vectors]).to_bytes().tobytes()
    copy = shutil.copytree(grown, tmp_path / "copy")
    adopt_second_segment(grown, lambda place: change_column(place, "index", lying))
    with pytest.raises(DatastoreCorrupt, match="do not fit each other"):
        DenseDrafter.open(100, grown)
    scale = np.full(DIMENSIONS, 2, np.float32).tobytes()
    adopt_second_segment(copy, lambda place: change_column(place, "scale", scale))
    with pytest.raises(DatastoreCorrupt, match="one projection"):
        DenseDrafter.open(100, copy)


# Appending


WORDS = {f"w{n}": n for n in range(VOCAB_SIZE)}


class FakeReader:
    """Takes the place of a model: a state is that of its token."""

    def __init__(self, model, encoder, tokens):
        self.num_tokens, self.hidden_size, self.fingerprint = len(tokens), DIMENSIONS, MODEL
        self._tokens = tokens

    def plan(self, windows):
        return {"tokens": self._tokens.tolist()}

    def states(self, windows):
        tokens = np.concatenate([self._tokens[w.first : w.stop] for w in windows])
        return (CENTRES[tokens % 9]).astype(np.float16)


@pytest.fixture
def tokenizer(tmp_path):
    return write_tokenizer(tmp_path / "model", WORDS)


@pytest.fixture
def without_model(monkeypatch):
    monkeypatch.setattr(dense_grow, "StateReader", FakeReader)
    monkeypatch.setattr(dense_grow, "model_fingerprint", lambda model: model)


def as_lines(path, documents):
    path.write_text("".join(json.dumps({"text": " ".join(f"w{id_}" for id_ in d)}) + "\n" for d in documents))
    return Corpus([path])


@pytest.fixture
def store(tmp_path, tokenizer, without_model, monkeypatch):
    """A store whose manifest names the tokenizer."""
    from retrieval_spec.datastore.store import replace_datastore
    from retrieval_spec.datastore.tokenizer import load_tokenizer

    path = write_dense(tmp_path / "store", DOCUMENTS[:20], VOCAB_SIZE, states_of(DOCUMENTS[:20]), np.uint16)
    opened = open_datastore(path)
    fields = {field: getattr(opened.manifest, field) for field in Facts.__dataclass_fields__}
    facts = Facts(**{**fields, "tokenizer": load_tokenizer(tokenizer).facts})
    replace_datastore(path, facts, opened.columns)
    return path


def test_appended_documents_have_the_projection_and_the_training_of_the_first(tmp_path, store, tokenizer):
    corpus = as_lines(tmp_path / "more.jsonl", DOCUMENTS[18:30])
    changed = append_states(store, corpus, model=MODEL, tokenizer=tokenizer)
    assert (changed.generation, changed.num_segments, changed.num_added, changed.num_duplicates) == (
        1,
        2,
        10,
        2,
    )
    verify_segments(store)
    first, second = open_segments(store).stores
    for name in ("mean", "scale", "components"):
        assert first.columns[name].tolist() == second.columns[name].tolist()
    drafter = DenseDrafter.open(100, store)
    assert drafter.projection.equals(identity(DIMENSIONS))
    tokens, positions = second.columns["tokens"], second.columns["positions"]
    index = drafter.states[1].index
    stored = index._index.reconstruct_n(0, index.num_vectors)
    np.testing.assert_allclose(stored, unit(CENTRES[tokens[positions - 1] % 9]), atol=0.05)
    assert len(positions) == sum(len(document) - 1 for document in DOCUMENTS[20:30])
    again = append_states(store, corpus, model=MODEL, tokenizer=tokenizer)
    assert (again.generation, again.num_added, again.num_duplicates) == (1, 0, 12)
    assert not list(tmp_path.glob(".*"))


def test_what_does_not_fit_is_refused(tmp_path, store, tokenizer):
    corpus = as_lines(tmp_path / "more.jsonl", DOCUMENTS[20:30])
    with pytest.raises(ModelMismatch):
        append_states(store, corpus, model="sha256:" + "b" * 64, tokenizer=tokenizer)
    other = write_tokenizer(tmp_path / "other", {**WORDS, "more": VOCAB_SIZE})
    with pytest.raises(TokenizerMismatch):
        append_states(store, corpus, model=MODEL, tokenizer=other)
    with pytest.raises(InvalidRequest, match="no token that follows"):
        append_states(store, as_lines(tmp_path / "short.jsonl", [[3]]), model=MODEL, tokenizer=tokenizer)
    assert open_segments(store).generation == 0


@pytest.mark.row("D1")
def test_after_kill_9_at_any_call_the_old_or_the_new_generation_is_there(tmp_path, store, tokenizer):
    corpus = as_lines(tmp_path / "more.jsonl", DOCUMENTS[20:24])

    def work(path):
        faiss.omp_set_num_threads(1)  # a team of threads does not live on in a forked process
        append_states(path, corpus, model=MODEL, tokenizer=tokenizer)

    num_killed = found_new = 0
    old_documents, new_documents = 20, 24
    for seam, stride in SEAMS.items():
        for call in range(1, 100, 2 * stride):
            place = tmp_path / "places" / "store"
            place.parent.mkdir()
            shutil.copytree(store, place)
            ended = run_until(seam, call, lambda place=place: work(place))
            if ended == "killed":
                num_killed += 1
                verify_segments(place)
                found = open_segments(place).manifest.num_documents
                assert found in (old_documents, new_documents)
                found_new += found == new_documents
                with contextlib.suppress(InvalidRequest):
                    work(place)
                assert open_segments(place).manifest.num_documents == new_documents
                assert {path.name for path in (place / "segments").iterdir()} == {
                    store.path.name for store in open_segments(place).stores[1:]
                }
                DenseDrafter.open(100, place)
                work(place)  # whatever a killed one left is gone when the next one is done
                assert not [path for path in place.rglob(".*")]
            shutil.rmtree(place.parent)
            if ended == "done":
                break
    assert num_killed >= 15
    assert found_new >= 1


# The command line, with a real model


def run(capsys, *arguments):
    assert main([*map(str, arguments), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_dense_store_grows_and_shrinks_from_the_command_line(tmp_path, capsys):
    pytest.importorskip("transformers")
    (tmp_path / "a.py").write_text("def f(x):\n    return x + 1\n" * 20)
    (tmp_path / "b.py").write_text("class A:\n    def __init__(self):\n        pass\n" * 9)
    (tmp_path / "b.txt").write_text("left out\n")
    model, store = demo_model_dir(), tmp_path / "dense"
    build = ["build", tmp_path, "--include", "*.py", "--exclude", "b.py", "--kind", "dense", "--model", model]
    assert run(capsys, *build, "--out", store)[0]["num_documents"] == 1
    append = ["append", store, tmp_path / "b.py", "--model", model]
    assert run(capsys, *append)[0]["num_added"] == 1
    assert run(capsys, "verify", store)[0]["num_segments"] == 2
    assert run(capsys, "inspect", store)[0]["origins"] == {
        str(tmp_path / "a.py"): 1,
        str(tmp_path / "b.py"): 1,
    }
    found = run(capsys, "inspect", store, "--documents", "--tokenizer", model)
    assert [one["origin"] for one in found] == [str(tmp_path / "a.py"), str(tmp_path / "b.py")]
    assert run(capsys, "compact", store)[0]["num_segments"] == 1
    assert run(capsys, "remove", store, "--id", found[0]["id"])[0]["num_removed"] == 1
    assert run(capsys, "inspect", store, "--documents")[0]["id"] == found[1]["id"]
    DenseDrafter.open(4_096, store)
    assert main(["append", str(store), str(tmp_path / "b.py")]) == 2
    assert "--model" in capsys.readouterr().err
    assert main([*map(str, append), "--memory-limit", "4G"]) == 2
    assert "--memory-limit" in capsys.readouterr().err
