from __future__ import annotations

import json
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("faiss")
# ruff: noqa: E402
from retrieval_spec import dense_build, dense_states
from retrieval_spec.cli import main
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.shards import Shards
from retrieval_spec.datastore.store import open_datastore, verify_datastore
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.dense_build import build_dense
from retrieval_spec.dense_states import decided_positions, windows_of
from retrieval_spec.drafters.dense import DenseDrafter, read_projection
from retrieval_spec.errors import DatastoreCorrupt, DatastoreError, DatastoreExists, InvalidRequest
from retrieval_spec.target_states import model_fingerprint
from tests import warm_processes
from tests.tiny_models import tiny_model

VOCAB_SIZE = 4_096
TEXTS = ["def f(x):\n    return x + 1\n" * 60, "import os\n", "class A:\n    pass\n" * 5]


@pytest.fixture(scope="module")
def model():
    return tiny_model("Llama", vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


@pytest.fixture(scope="module")
def built(model, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "dense"
    return build_dense(Corpus([corpus]), model=model, tokenizer=demo_model_dir(), out=out)


@pytest.mark.parametrize("lengths", [[1], [2], [512, 513, 514], [3, 1, 2_000], [449, 960, 961, 962]])
def test_every_token_with_one_before_it_is_decided_once(lengths):
    starts = np.cumsum([0, *(length + 1 for length in lengths)])
    windows = list(windows_of(int(starts[-1]), starts[:-1]))
    positions = decided_positions(windows).tolist() if windows else []
    wanted = [s + i for s, length in zip(starts.tolist(), lengths, strict=False) for i in range(1, length)]
    assert positions == wanted
    for window in windows:
        assert window.stop - window.begin <= dense_states.WINDOW_TOKENS
        assert window.first == window.begin or window.first - window.begin == dense_states.CONTEXT_TOKENS


def test_the_states_are_those_of_the_plain_pass(model, built):
    store = open_datastore(built.path)
    projection = read_projection(store.manifest, store.columns)
    assert projection.check_model(model_fingerprint(model)).dimensions == 32
    tokens, start = store.columns["tokens"], int(store.columns["documents"][2])
    document = tokens[start:-1].astype(np.int64)
    with torch.inference_mode():
        states = model(torch.from_numpy(document[None]), output_hidden_states=True).hidden_states[-1][0]
    vectors = projection.apply(states.numpy())
    drafter = DenseDrafter.open(VOCAB_SIZE, built.path)
    for i in range(len(document) - 1):
        numbers, similarities = drafter.states[0].index.search(vectors[i], 5)
        assert start + i + 1 in store.columns["positions"][numbers].tolist()
        assert similarities[0] > 0.99


def test_the_datastore_is_whole_and_the_work_folder_gone(built):
    verify_datastore(built.path)
    assert [path.name for path in built.path.parent.iterdir()] == ["dense"]
    assert built.num_vectors == len(open_datastore(built.path).columns["positions"]) > 500
    assert built.recall_at_10 > 0.9


def test_the_command_prints_the_recall(corpus, tmp_path, capsys):
    command = ["build", str(corpus), "--kind", "dense", "--model", str(demo_model_dir())]
    assert main([*command, "--out", str(tmp_path / "dense"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kind"] == "dense"
    assert 0 < printed["recall_at_10"] <= 1  # many of its states are alike: which are the nearest is unclear
    assert printed["index_bytes_per_vector"] < 100
    assert main([*command, "--out", str(tmp_path / "dense")]) == 2  # the place is taken


def test_a_dense_build_needs_the_model(corpus, tmp_path, capsys):
    assert main(["build", str(corpus), "--kind", "dense", "--out", str(tmp_path / "dense")]) == 2
    assert "--model is missing" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from retrieval_spec import dense_build, dense_states
from retrieval_spec.datastore.corpus import Corpus
from tests.tiny_models import tiny_model
from retrieval_spec.demo_model import demo_model_dir

dense_states.WINDOW_TOKENS, dense_states.SHARD_TOKENS = 128, 200
plain = dense_states.StateReader.states
calls = []

def states(self, windows):
    calls.append(len(windows))
    if len(calls) > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(self, windows)

dense_states.StateReader.states = states
model = tiny_model("Llama", vocab_size=4096)
dense_build.build_dense(Corpus([sys.argv[1]]), model=model, tokenizer=demo_model_dir(), out=sys.argv[2])
print(len(calls))
"""


def run_killed(corpus, out, after):
    return warm_processes.run("-c", KILLED, corpus, out, after)


@pytest.mark.row("D1")
def test_a_killed_build_goes_on_from_its_finished_parts(corpus, tmp_path):
    killed = run_killed(corpus, tmp_path / "dense", 2)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "dense").exists()
    parts = sorted((tmp_path / ".dense.work").glob("*.part"))
    assert len(parts) == 2
    damaged = bytearray(parts[1].read_bytes())
    damaged[7] ^= 1
    parts[1].write_bytes(damaged)
    second = run_killed(corpus, tmp_path / "dense", 99)
    whole = run_killed(corpus, tmp_path / "whole", 99)
    assert int(second.stdout) == int(whole.stdout) - 1  # one part was reused, the damaged one made again
    for name in ("index", "positions", "mean", "scale", "components"):
        files = [(tmp_path / store / f"{name}.bin").read_bytes() for store in ("dense", "whole")]
        assert files[0] == files[1]


def test_parts_of_another_plan_are_deleted(tmp_path):
    part = np.ones((3, 4), np.float16)
    shards = Shards(tmp_path / "dense", {"model": "a"}, np.float16, 4)
    shards.save(0, part)
    with pytest.raises(DatastoreError, match="another process"):
        Shards(tmp_path / "dense", {"model": "a"}, np.float16, 4)
    shards.close()
    again = Shards(tmp_path / "dense", {"model": "a"}, np.float16, 4)
    np.testing.assert_array_equal(again.load(0, 3), part)
    assert again.load(1, 3) is None
    assert again.load(0, 2) is None  # of another size: deleted
    again.save(0, part)
    again.close()
    other = Shards(tmp_path / "dense", {"model": "b"}, np.float16, 4)
    assert other.load(0, 3) is None
    other.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_refused_before_the_model_runs(model, corpus, built, monkeypatch):
    monkeypatch.setattr(dense_build, "StateReader", None)
    with pytest.raises(DatastoreExists):
        build_dense(Corpus([corpus]), model=model, tokenizer=demo_model_dir(), out=built.path)


@pytest.mark.row("F8")
def test_a_tokenizer_of_another_model_is_refused(corpus, tmp_path):
    with pytest.raises(InvalidRequest, match="not the model's"):
        build_dense(
            Corpus([corpus]), model=tiny_model("Llama"), tokenizer=demo_model_dir(), out=tmp_path / "dense"
        )


def test_a_projection_that_does_not_fit_is_corrupt(built):
    store = open_datastore(built.path)
    columns = {**store.columns, "scale": store.columns["scale"][:-1]}
    with pytest.raises(DatastoreCorrupt, match="no projection"):
        read_projection(store.manifest, columns)
