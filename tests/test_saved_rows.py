"""Adjacency rows written to disk and read again: equal trees, no shared state, nothing damaged taken over."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.datastore import layout
from retrieval_spec.datastore.manifest import TokenizerFacts
from retrieval_spec.datastore.store import open_datastore, verify_datastore
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.recycling import RankTree, RecyclingDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.errors import DatastoreCorrupt, DatastoreExists, InvalidRequest, TokenizerMismatch
from retrieval_spec.feedback import Feedback
from retrieval_spec.kernels import adjacency as kernels
from retrieval_spec.structures.adjacency_rows import AdjacencyRows, new_counts, no_counts
from retrieval_spec.structures.saved_rows import SavedRows
from tests.golden import GOLDEN, change_column, change_manifest, copy_golden
from tests.replay import recorded
from tests.strategies import as_int32 as ids
from tests.test_cli import run

VOCAB_SIZE = 151_936
NUM_IDS = 300
RULES = pytest.mark.parametrize("rule", [None, RankTree()], ids=["ours", "published"])


def random_feedback(rng):
    nodes, rows = rng.integers(0, NUM_IDS, 20), rng.integers(0, NUM_IDS, (20, 8))
    rows[:, 5] = rows[:, 2]
    logprobs = -np.sort(rng.random((20, 8)).astype(np.float32) * 6, axis=1)
    return Feedback(ids(nodes), ids([-1, *np.zeros(19, int)]), ids(rows), logprobs)


def teach(drafter, namespace="default", seed=0, num_steps=60, offset=0):
    """Rows of every kind: with ids that repeat and so leave holes, with levels and without."""
    rng = np.random.default_rng(seed)
    cursor = drafter.start(ids(rng.integers(0, NUM_IDS, 400) + offset), namespace)
    for _ in range(num_steps):
        cursor.observe(ids(rng.integers(0, NUM_IDS, 3) + offset), random_feedback(rng))
    cursor.close()


def trees(drafter, namespace="default"):
    contexts = np.random.default_rng(9).integers(0, NUM_IDS, (150, 2))
    # Opening a cursor teaches its context, to both sides of a comparison alike.
    return [drafter.start(ids(context), namespace).propose(Budget(64)) for context in contexts]


@RULES
def test_what_was_saved_drafts_the_same_trees(tmp_path, rule):
    drafter = RecyclingDrafter.open(VOCAB_SIZE, rule)
    teach(drafter)
    drafter.save(tmp_path / "rows")
    verify_datastore(tmp_path / "rows")
    loaded = RecyclingDrafter.open(VOCAB_SIZE, rule, path=tmp_path / "rows")
    expected = trees(drafter)
    assert trees(loaded) == expected
    assert sum(len(tree) for tree in expected) > 2_000


def test_both_sides_learn_on_alike(tmp_path):
    drafter = RecyclingDrafter.open(VOCAB_SIZE)
    teach(drafter)
    drafter.save(tmp_path / "rows")
    loaded = RecyclingDrafter.open(VOCAB_SIZE, path=tmp_path / "rows")
    for side in (drafter, loaded):
        teach(side, seed=1)
    assert trees(loaded) == trees(drafter)


def test_what_real_outputs_taught_comes_back(tmp_path, data_dir):
    drafter = RecyclingDrafter.open(VOCAB_SIZE)
    family = sorted(path.stem for path in (data_dir / "tok_qwen2").glob("*.jsonl"))[0]
    traces = recorded(data_dir, family, 4)
    for prompt, output in traces:
        cursor = drafter.start(ids(prompt))
        cursor.observe(ids(output))
        cursor.close()
    drafter.save(tmp_path / "rows")
    loaded = RecyclingDrafter.open(VOCAB_SIZE, path=tmp_path / "rows")
    num_nodes = 0
    for _, output in traces:
        for at in range(2, 200, 5):
            pair = [side.start(ids(output[at - 2 : at])).propose(Budget(16)) for side in (drafter, loaded)]
            assert pair[0] == pair[1]
            num_nodes += len(pair[0])
    assert num_nodes > 500


def test_saving_again_gives_every_byte(tmp_path):
    drafter = RecyclingDrafter.open(VOCAB_SIZE)
    teach(drafter, offset=70_000)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    drafter.save(tmp_path / "a" / "rows")
    RecyclingDrafter.open(VOCAB_SIZE, path=tmp_path / "a" / "rows").save(tmp_path / "b" / "rows")
    for file in (tmp_path / "a" / "rows").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / "rows" / file.name).read_bytes()


@RULES
def test_namespaces_start_alike_and_part_ways(tmp_path, rule):
    source = RecyclingDrafter.open(VOCAB_SIZE, rule)
    teach(source, "tenant")
    source.save(tmp_path / "rows", "tenant")
    source.save(tmp_path / "nothing", "another")
    assert open_datastore(tmp_path / "nothing").manifest.num_documents == 0
    loaded = RecyclingDrafter.open(VOCAB_SIZE, rule, path=tmp_path / "rows")
    untouched = trees(loaded, "one")
    teach(loaded, "two", seed=5)
    loaded.start(ids([1])).close()
    assert trees(loaded, "three") == untouched
    assert trees(loaded, "two") != untouched
    loaded.save(tmp_path / "again", "four")
    assert (tmp_path / "again" / "tokens.bin").read_bytes() == (tmp_path / "rows" / "tokens.bin").read_bytes()


steps = st.lists(
    st.tuples(st.integers(0, 11), st.lists(st.integers(0, 11), min_size=8, max_size=8)), max_size=20
)


@given(steps=steps, text=st.lists(st.integers(0, 11), max_size=60), num_pairs=st.sampled_from([0, 8, 16, 64]))
@settings(deadline=None)
def test_every_row_survives_its_columns(steps, text, num_pairs):
    rows = AdjacencyRows(12, num_pairs)
    if steps:
        nodes, parents = ids([node for node, _ in steps]), ids([-1, *([0] * (len(steps) - 1))])
        logprobs = -np.arange(8 * len(steps), dtype=np.float32).reshape(-1, 8)
        rows.update(nodes, parents, ids([row for _, row in steps]), logprobs, 3)
    rows.learn(ids(text), 1, no_counts())
    saved = rows.saved()
    loaded = AdjacencyRows(12, num_pairs)
    loaded.restore(SavedRows.from_columns(saved.to_columns()))
    again = loaded.saved()
    np.testing.assert_array_equal(again.keys, saved.keys)
    np.testing.assert_array_equal(again.rows, saved.rows)
    for token in range(12):
        assert loaded.row(token) == rows.row(token)
        assert all(loaded.pair_row(other, token) == rows.pair_row(other, token) for other in range(12))


@pytest.mark.parametrize("num_pairs", [64, 1024])
def test_a_full_table_of_pairs_loses_none(num_pairs):
    rows, loaded = AdjacencyRows(500, num_pairs), AdjacencyRows(500, num_pairs)
    rows.learn(ids(np.random.default_rng(2).integers(0, 500, 20_000)), 1, no_counts())
    loaded.restore(rows.saved())
    assert (rows.saved().keys[:, 0] >= 0).sum() == num_pairs
    np.testing.assert_array_equal(loaded.saved().keys, rows.saved().keys)
    np.testing.assert_array_equal(loaded.saved().rows, rows.saved().rows)


def test_a_smaller_table_keeps_the_newest_pairs():
    rows, small = AdjacencyRows(500, 1024), AdjacencyRows(500, 64)
    text = np.random.default_rng(2).integers(0, 500, 600).tolist()
    rows.learn(ids(text), 1, no_counts())
    small.restore(rows.saved())
    kept = {tuple(key) for key in small.saved().keys.tolist() if key[0] >= 0}
    newest = [tuple(key) for key in rows.saved().keys.tolist() if key[0] >= 0][-64:]
    assert 40 < len(kept) <= 64
    assert kept <= set(newest)


def test_an_engine_feeds_the_source_with_the_datastore(tmp_path):
    drafter = RecyclingDrafter.open(VOCAB_SIZE)
    teach(drafter)
    facts = TokenizerFacts("sha256:" + "b" * 64)
    drafter.save(tmp_path / "rows", tokenizer=facts)
    plain = Engine(VOCAB_SIZE, preset="session+recycling")
    engine = Engine(VOCAB_SIZE, preset="session+recycling", datastores=[tmp_path / "rows"])
    assert list(plain.drafters) == ["session", "recycling"]
    assert plain.datastores == {}
    assert list(engine.drafters) == ["session", "recycling:rows"]
    assert engine.datastores == {"rows": facts.fingerprint}
    context = np.random.default_rng(0).integers(0, NUM_IDS, 400)[:2].tolist()
    assert len(plain.open_session(context).draft(16)) == 0
    assert len(engine.open_session(context).draft(16)) > 0
    engine.drafters["recycling:rows"].save(tmp_path / "again")
    assert open_datastore(tmp_path / "again").manifest.tokenizer == facts


def test_a_taken_place_and_a_nameless_one_are_refused(tmp_path):
    drafter = RecyclingDrafter.open(VOCAB_SIZE)
    drafter.save(tmp_path / "rows")
    with pytest.raises(DatastoreExists):
        drafter.save(tmp_path / "rows")
    with pytest.raises(InvalidRequest):
        drafter.save(tmp_path / ("n" * 129))


# Bad files


@pytest.mark.parametrize("vocab_size", [49_999, 50_001])
def test_rows_of_another_vocabulary_are_refused(vocab_size):
    with pytest.raises(TokenizerMismatch, match="another vocabulary"):
        RecyclingDrafter.open(vocab_size, path=GOLDEN / "rows")


def test_a_datastore_of_another_kind_is_refused():
    with pytest.raises(InvalidRequest, match="another kind; got context_array"):
        RecyclingDrafter.open(50_000, path=GOLDEN / "uint16")


@pytest.mark.row("F1")
@pytest.mark.parametrize("column", layout.KINDS["adjacency_rows"])
def test_altered_bytes_are_refused_when_rows_are_opened(tmp_path, column):
    store = copy_golden(tmp_path, "rows")
    data = bytearray((store / f"{column}.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (store / f"{column}.bin").write_bytes(data)
    with pytest.raises(DatastoreCorrupt, match=rf"{column}\.bin was altered"):
        RecyclingDrafter.open(50_000, path=store)


# The first rows of the golden store are: 3 -> 1 (sure) _ 4, then 4 -> 8 ids; see tools/make_golden.py.
LIES = [
    ("orders", 0, 0, "neither 1 nor 2 at index 0"),
    ("orders", 0, 3, "neither 1 nor 2 at index 0"),
    ("orders", 1, 2, "places.*no place at index"),
    ("orders", -1, 1, "places.*does not rise within a row"),
    ("documents", 1, 2, "does not end with the separator"),
    ("tokens", 0, 50_000, "outside the vocabulary"),
    ("tokens", 1, 50_000, "outside the vocabulary"),
    ("tokens", 2, 1, "a row holds an id twice; got 1"),
    ("places", 0, 1, "no place at index 0"),
    ("places", 3, 16, "no place at index 3"),
    ("places", 2, 128, "no place at index 2"),
    ("places", 2, 15, "does not rise within a row at index 2"),
    ("offered", 0, -1, "'offered' is out of range at index 0"),
    ("offered", 1, 2**62, "'offered' is out of range at index 1"),
    ("right", 0, 101, "'right' is out of range at index 0"),
    ("right", 2, -1, "'right' is out of range at index 2"),
]


@pytest.mark.row("F2")
@pytest.mark.parametrize("chunk", [1 << 20, 16], ids=["one chunk", "a row a chunk"])
@pytest.mark.parametrize(("column", "index", "value", "said"), LIES, ids=str)
def test_columns_that_lie_are_refused(tmp_path, monkeypatch, column, index, value, said, chunk):
    monkeypatch.setattr(layout, "_CHUNK", chunk)
    store = copy_golden(tmp_path, "rows")
    values = open_datastore(store).columns[column].copy()
    values[index] = value
    change_column(store, column, values.tobytes())
    with pytest.raises(DatastoreCorrupt, match=said):
        RecyclingDrafter.open(50_000, path=store)


@pytest.mark.parametrize("extra", [1, 3])
def test_a_row_of_too_many_ids_is_refused(tmp_path, extra):
    store = copy_golden(tmp_path, "rows")
    columns = open_datastore(store).columns
    last = int(columns["documents"][-1])
    row = [5, 6, *range(100, 108 + extra), 65_535]
    tokens = np.concatenate([columns["tokens"][:last], np.array(row, np.uint16)])
    change_column(store, "tokens", tokens.tobytes())
    change_column(store, "places", np.resize(columns["places"], tokens.shape).tobytes())
    change_manifest(store, lambda manifest: manifest.update(num_tokens=len(tokens)))
    with pytest.raises(DatastoreCorrupt, match="more than 8 ids"):
        verify_datastore(store)


@pytest.mark.row("F2")
@pytest.mark.parametrize("column", ["orders", "places", "offered", "right"])
def test_a_column_of_another_length_is_refused(tmp_path, column):
    store = copy_golden(tmp_path, "rows")
    change_column(store, column, (store / f"{column}.bin").read_bytes()[:-8])
    with pytest.raises(DatastoreCorrupt, match=f"'{column}' has another length"):
        open_datastore(store)


def test_the_format_has_the_numbers_of_the_rows():
    assert layout.ROW_IDS == kernels.WIDTH
    assert 1 << kernels.LEVEL_BITS == kernels.MAX_LEVEL + 1 == layout.ROW_LEVELS
    assert new_counts().shape == (2, layout.ROW_CLASSES)


def test_the_command_line_inspects_and_verifies_rows():
    assert "adjacency_rows" in run("inspect", GOLDEN / "rows").stdout
    done = run("verify", GOLDEN / "rows", "--json")
    assert done.returncode == 0, done.stderr
    assert '"intact": true' in done.stdout
