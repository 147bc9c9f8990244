from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_spec import encoding as encoding_module
from retrieval_spec import spread as spread_module
from retrieval_spec.build import build_datastore
from retrieval_spec.cli import main
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.documents import document_id
from retrieval_spec.datastore.pieces import Piece, open_piece
from retrieval_spec.datastore.segments import open_segments, verify_segments
from retrieval_spec.encoding import Encoder
from retrieval_spec.errors import (
    DatastoreError,
    InvalidRequest,
    MissingDependency,
    MissingPath,
    TokenizerMismatch,
)
from retrieval_spec.spread import Cutter, encode_piece, sort_segment
from tests.fake_progress import ToldProgress
from tests.pools import ShuffledPool
from tests.test_segments import inodes, run_until
from tests.word_tokenizers import write_tokenizer

WORDS = {f"w{n}": n for n in range(60)} | {"last": 65_534, "far": 151_000}


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    return write_tokenizer(tmp_path / "model", WORDS)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Segments of some tokens, pieces of some files."""
    monkeypatch.setattr(encoding_module, "MIN_SEGMENT_TOKENS", 1)
    monkeypatch.setattr(encoding_module, "BUILD_BYTES", 0)
    monkeypatch.setattr(encoding_module, "BUILD_BYTES_PER_TOKEN", 1)
    monkeypatch.setattr(encoding_module, "_BATCH_CHARACTERS", 30)
    monkeypatch.setattr(spread_module, "PIECE_BYTES", 700)


@pytest.fixture
def inputs(tmp_path) -> list[Path]:
    """Files of many sizes: some share a piece, one is longer than one, one is no text, one has wide ids."""
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(12):
        texts = [
            " ".join(f"w{(number + n * k) % 59}" for n in range(3 + k)) for k in range(1 + number % 4 * 3)
        ]
        if number in (5, 9):
            texts.insert(0, "w1 far" if number == 9 else "")
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{number:02d}.jsonl").write_text(lines)
    (folder / "03.txt").write_bytes(b"\0\1")
    (folder / "07.jsonl").write_text((folder / "02.jsonl").read_text() * 2)
    return [folder]


def build(inputs, tokenizer, out: Path, pool=None, limit: int = 90, **options) -> Path:
    corpus = Corpus(inputs, on_error=options.pop("on_error", "stop"))
    return build_datastore(
        corpus,
        tokenizer=tokenizer,
        out=out,
        name="words",
        memory_limit_bytes=limit,
        threads=1,
        pool=pool,
        **options,
    )


def bytes_of(place: Path) -> dict[str, bytes]:
    """Every file of a datastore, by its path in it; nothing hidden is passed over."""
    return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}


@pytest.mark.parametrize("choice", [{}, {"drop_duplicates": True}, {"drop_near_duplicates": 0.5}])
@pytest.mark.parametrize("limit", [40, 90, 10_000])
def test_any_order_of_finished_shards_gives_the_bytes_of_a_local_build(
    tmp_path, inputs, tokenizer, limit, choice
):
    options = {"limit": limit, **choice}
    expected = bytes_of(build(inputs, tokenizer, tmp_path / "local", **options))
    everything = bytes_of(build(inputs, tokenizer, tmp_path / "everything", limit=limit))
    assert (expected != everything) == bool(choice)
    is_one = "manifest.json" in expected
    assert is_one == (limit == 10_000)
    orders = set()
    for seed in range(3):
        pool = ShuffledPool(seed)
        place = build(inputs, tokenizer, tmp_path / f"spread{seed}", pool, **options)
        assert bytes_of(place) == expected
        orders.add(tuple(pool.order))
        kinds = [task.kind for task in pool.order]
        assert kinds.count("encode") >= 4
        assert kinds.count("sort") == (1 if is_one else len(open_segments(place).stores)) >= 1
    verify_segments(place)
    assert len(orders) > 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_segments_have_the_width_of_their_own_ids(tmp_path, inputs, tokenizer):
    place = build(inputs, tokenizer, tmp_path / "spread", ShuffledPool(), limit=40)
    assert {store.manifest.token_dtype for store in open_segments(place).stores} == {"<u2", "<i4"}


def piece_of(lengths: list[int]) -> Piece:
    documents = [np.full(length, 1 + length % 3, np.int32) for length in lengths]
    return Piece(
        np.concatenate([np.empty(0, np.int32), *documents]),
        np.cumsum(lengths, dtype=np.int64),
        np.array([document_id(document) for document in documents], np.int64),
        np.zeros(len(lengths), np.uint32),
        ("one",),
        0,
        {},
    )


@given(st.lists(st.lists(st.integers(1, 12), max_size=12), max_size=6), st.integers(1, 40), st.booleans())
def test_the_borders_of_segments_are_those_that_an_encoder_draws(pieces, max_tokens, drop_duplicates):
    encoder = Encoder(None, Path(), max_tokens, set() if drop_duplicates else None)
    cutter, runs = Cutter(encoder), []
    for number, lengths in enumerate(pieces):
        runs += [cut.runs.tolist() for cut in cutter.add(number, piece_of(lengths))]
    runs += [cut.runs.tolist() for cut in cutter.rest()]
    found = [[(piece, at) for piece, first, stop in cut for at in range(first, stop)] for cut in runs]
    expected, seen, used = [], set(), 0
    for number, lengths in enumerate(pieces):
        for at, length in enumerate(lengths):
            if drop_duplicates and length in seen:
                continue
            seen.add(length)
            if not expected or used + length + 1 > max_tokens:
                expected.append([])
                used = 0
            expected[-1].append((number, at))
            used += length + 1
    assert found == expected


def test_every_stage_is_told(tmp_path, inputs, tokenizer):
    for limit in (90, 10_000):
        told = ToldProgress()
        build(inputs, tokenizer, tmp_path / f"spread{limit}", ShuffledPool(3), limit=limit, progress=told)
        assert [(stage, unit) for stage, _, unit, _ in told.stages] == [
            ("encoding", "B"),
            ("sorting", "tokens"),
        ]
        assert told.is_complete()


def test_a_task_asks_for_the_memory_that_it_takes(tmp_path, inputs, tokenizer):
    pool = ShuffledPool()
    place = build(inputs, tokenizer, tmp_path / "spread", pool, limit=90)
    sizes = sorted(store.manifest.num_tokens for store in open_segments(place).stores)
    assert sorted(memory for _, memory in pool.needs if memory > spread_module.BUILD_BYTES) == [
        spread_module.BUILD_BYTES + size * spread_module.BUILD_BYTES_PER_TOKEN for size in sizes
    ]
    assert {cpus for cpus, _ in pool.needs} == {1}


def test_what_is_left_out_is_told_as_in_a_local_build(tmp_path, inputs, tokenizer, caplog):
    with (inputs[0] / "04.jsonl").open("a") as file:
        file.write("{\n")
    expected = bytes_of(build(inputs, tokenizer, tmp_path / "local", on_error="skip"))
    told = [record.message for record in caplog.records if "1 row" in record.message]
    caplog.clear()
    pool = ShuffledPool()
    assert bytes_of(build(inputs, tokenizer, tmp_path / "spread", pool, on_error="skip")) == expected
    assert len(told) == 1
    assert told[0] in caplog.text


def test_a_bad_input_is_named_and_what_was_finished_goes_with_the_next_build(tmp_path, inputs, tokenizer):
    bad = inputs[0] / "04.jsonl"
    good = bad.read_text()
    for seed in range(4):
        bad.write_text(good + "{\n")
        with pytest.raises(InvalidRequest, match=r"04\.jsonl:2: not JSON"):
            build(inputs, tokenizer, tmp_path / "spread", ShuffledPool(seed))
        assert not (tmp_path / "spread").exists()
        bad.write_text(good)
        shutil.rmtree(build(inputs, tokenizer, tmp_path / "spread", ShuffledPool(seed)))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text"]


def test_a_corpus_without_text_is_refused(tmp_path, tokenizer):
    (tmp_path / "binary.txt").write_bytes(b"\0\1")
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(InvalidRequest, match=r"no documents found.*got 1 files that are no UTF-8 text"):
        build(
            [tmp_path / "binary.txt", tmp_path / "empty.txt"], tokenizer, tmp_path / "spread", ShuffledPool()
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["binary.txt", "empty.txt", "model"]


# Killed and begun again


def test_a_build_that_was_stopped_goes_on_and_makes_nothing_twice(tmp_path, inputs, tokenizer):
    expected = bytes_of(build(inputs, tokenizer, tmp_path / "local"))
    out = tmp_path / "spread"
    num_kept = 0
    for stop_after in range(1, 60, 3):
        try:
            build(inputs, tokenizer, out, ShuffledPool(stop_after, stop_after=stop_after))
            break
        except KeyboardInterrupt:
            begun = tmp_path / ".spread.segments"
            finished = [*begun.glob("*/pieces/[!.]*"), *begun.glob("*/store/segments/[!.]*")]
            assert finished
            before = inodes(finished)
            with contextlib.suppress(KeyboardInterrupt):
                build(inputs, tokenizer, out, ShuffledPool(stop_after + 1, stop_after=4))
            assert before <= inodes([*begun.glob("*/pieces/[!.]*"), *begun.glob("*/store/segments/[!.]*")])
            num_kept += len(before)
            segments = inodes(begun.glob("*/store/segments/[!.]*"))
            build(inputs, tokenizer, out, ShuffledPool(stop_after))
            assert segments <= inodes((out / "segments").iterdir())
            assert bytes_of(out) == expected
            shutil.rmtree(out)
    assert num_kept > 20


def test_a_local_build_takes_over_the_segments_of_a_pool_and_the_other_way_round(tmp_path, inputs, tokenizer):
    expected = bytes_of(build(inputs, tokenizer, tmp_path / "local", limit=40))
    out, begun = tmp_path / "spread", tmp_path / ".spread.segments"
    with pytest.raises(KeyboardInterrupt):
        build(inputs, tokenizer, out, ShuffledPool(4, stop_after=14), limit=40)
    before = inodes(begun.glob("*/store/segments/[!.]*"))
    assert len(before) > 2
    build(inputs, tokenizer, out, limit=40)
    assert before <= inodes((out / "segments").iterdir())
    assert bytes_of(out) == expected
    shutil.rmtree(out)
    assert run_until("replace", 3, lambda: build(inputs, tokenizer, out, limit=40)) == "killed"
    before = inodes(begun.glob("*/store/segments/[!.]*"))
    assert len(before) > 2
    build(inputs, tokenizer, out, ShuffledPool(), limit=40)
    assert before <= inodes((out / "segments").iterdir())
    assert bytes_of(out) == expected


class Recorded(ShuffledPool):
    """Runs nothing twice, and keeps what it ran."""

    def results(self):
        while self._waiting:
            task, function, arguments = self._waiting.pop(0)
            self._done.append((task, function, arguments))
            yield task, function(*arguments)


@pytest.mark.row("D1")
def test_a_worker_that_is_killed_at_any_call_leaves_nothing_behind_that_a_retry_does_not_clear(
    tmp_path, inputs, tokenizer
):
    expected = bytes_of(build(inputs, tokenizer, tmp_path / "local"))

    class Killed(Recorded):
        num_killed = 0

        def results(self):
            while self._waiting:
                task, function, arguments = self._waiting.pop(0)
                for seam in ("write", "fsync", "rename", "open", "mkdir"):
                    for call in (1, 2, 4, 7):
                        ended = run_until(seam, call, lambda f=function, a=arguments: f(*a))
                        Killed.num_killed += ended == "killed"
                        if ended == "done":
                            break  # nor has it any later call
                yield task, function(*arguments)

    place = build(inputs, tokenizer, tmp_path / "spread", Killed())
    assert Killed.num_killed > 40
    assert bytes_of(place) == expected
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_piece_that_was_damaged_is_encoded_again(tmp_path, inputs, tokenizer):
    out, begun = tmp_path / "spread", tmp_path / ".spread.segments"
    for name in ("tokens", "stops", "ids", "origins", "facts.json"):
        with pytest.raises(KeyboardInterrupt):
            build(inputs, tokenizer, out, ShuffledPool(stop_after=3))
        piece = next(path for path in begun.glob("*/pieces/*") if os.path.getsize(path / "tokens"))
        os.truncate(piece / name, os.path.getsize(piece / name) - 4)
        build(inputs, tokenizer, out, ShuffledPool())
        assert bytes_of(out) == bytes_of(build(inputs, tokenizer, tmp_path / name))
        shutil.rmtree(out)
    assert open_piece(tmp_path / "nowhere") is None


# Workers that see other things


def recorded(tmp_path, inputs, tokenizer):
    """Returns calls of workers whose build is over, but whose folder is there."""
    pool = Recorded()
    build(inputs, tokenizer, tmp_path / "spread", pool)
    job = pool._done[0][2][0]
    (job.folder / "store").mkdir(parents=True)
    (job.folder / "pieces").mkdir()
    encode = next(arguments for task, _, arguments in pool._done if task.kind == "encode")
    return job, encode, next(arguments for task, _, arguments in pool._done if task.kind == "sort")


def test_a_worker_refuses_what_is_not_what_the_build_began_with(tmp_path, inputs, tokenizer, monkeypatch):
    job, encode, sort = recorded(tmp_path, inputs, tokenizer)
    with pytest.raises(DatastoreError, match="an encoded part is gone"):
        sort_segment(*sort)
    encode_piece(*encode)
    shutil.rmtree(job.folder / "pieces" / "000000")
    (inputs[0] / "00.jsonl").write_text('{"text": "w7 w7 w7 w7"}\n')
    with pytest.raises(MissingPath, match="a node sees other inputs"):
        encode_piece(*encode)
    (inputs[0] / "00.jsonl").unlink()
    with pytest.raises(MissingPath, match=r"a node does not see an input.*file system that all nodes see"):
        encode_piece(*encode)
    monkeypatch.setattr(spread_module, "created_by", lambda: "retrieval-spec 0")
    with pytest.raises(DatastoreError, match=r"another version of retrieval-spec.*on all nodes"):
        encode_piece(*encode)
    shutil.rmtree(job.folder)
    for function, arguments in ((encode_piece, encode), (sort_segment, sort)):
        with pytest.raises(MissingPath, match="a node does not see the folder of the build"):
            function(*arguments)


@pytest.mark.row("F8")
def test_a_worker_refuses_another_tokenizer(tmp_path, inputs, tokenizer):
    _, encode, _ = recorded(tmp_path, inputs, tokenizer)
    spread_module._tokenizer.cache_clear()
    write_tokenizer(tokenizer, {**WORDS, "more": 60})
    with pytest.raises(TokenizerMismatch, match="a node sees another tokenizer"):
        encode_piece(*encode)


# Ray


def test_without_ray_the_remedy_is_told(tmp_path, inputs, tokenizer, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    from retrieval_spec.cluster import RayPool

    with pytest.raises(MissingDependency, match=r"ray is not installed; pip install 'retrieval-spec\[ray\]'"):
        RayPool()
    command = ["build", str(inputs[0]), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "out")]
    assert main([*command, "--engine", "ray"]) == 2
    assert "ray is not installed" in capsys.readouterr().err


def test_an_engine_is_refused_where_it_would_be_ignored(tmp_path, inputs, tokenizer, capsys):
    out = ["--tokenizer", str(tokenizer), "--out", str(tmp_path / "out")]
    assert main(["build", str(inputs[0]), *out, "--address", "here:1"]) == 2
    assert "got --address; leave it out" in capsys.readouterr().err
    translation = ["--from-datastore", "a", "--from-tokenizer", "b", *out]
    for rest in (translation, [str(inputs[0]), *out, "--kind", "dense", "--model", "m"]):
        assert main(["build", *rest, "--engine", "ray"]) == 2
        assert "got --engine; leave it out" in capsys.readouterr().err
