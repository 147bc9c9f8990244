"""History on disk: whole or not at all after a crash, bounded, private, and forgotten for good."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.cli import main
from retrieval_spec.datastore import history_folder
from retrieval_spec.datastore.history_folder import HistoryFolder, HistoryLimits
from retrieval_spec.datastore.history_namespace import MAX_SEGMENTS
from retrieval_spec.datastore.history_segment import (
    MAX_OUTPUT_TOKENS,
    MAX_PROMPT_TOKENS,
    Text,
    header_bytes,
    read_segment,
    record_bytes,
)
from retrieval_spec.errors import DatastoreCorrupt, DatastoreError, MissingPath, TokenizerMismatch
from tests.conftest import REPOSITORY
from tests.kills import SEAMS, run_until
from tests.reference.history_format import read_history
from tests.strategies import as_int32

GOLDEN = REPOSITORY / "datastores" / "golden" / "history-v1"
VOCAB_SIZE = 151_936
NOW_S = 1_700_000_000
CANARY = [101_234, 55_555, 149_876, 88_001]


def text(output, prompt=()):
    return Text(as_int32(list(prompt)), as_int32(list(output)))


def opened(path, **limits):
    return HistoryFolder.open(path, VOCAB_SIZE, limits=HistoryLimits(**limits))


def lists(texts):
    return [(one.prompt.tolist(), one.output.tolist()) for one in texts]


@pytest.fixture
def folder(tmp_path):
    history = opened(tmp_path / "history")
    yield history
    history.close()


def only_segment(path):
    (segment,) = [file for file in path.glob("*/*")]
    return segment


def test_what_was_written_is_read_in_order(tmp_path, folder):
    folder.append("acme/code", [text([1, 2], [9]), text([3])], NOW_S)
    folder.append("acme/code", [text([4], [8])], NOW_S)
    folder.append("other", [text([5])], NOW_S)
    assert lists(folder.read("acme/code")) == [([9], [1, 2]), ([], [3]), ([8], [4])]
    assert folder.read("acme") == []
    folder.close()
    with pytest.raises(TokenizerMismatch):
        HistoryFolder.open(tmp_path / "history", VOCAB_SIZE + 1)
    again = opened(tmp_path / "history")
    assert lists(again.read("acme/code")) == [([9], [1, 2]), ([], [3]), ([8], [4])]
    assert [listed.namespace for listed in again.listing()] == ["acme/code", "other"]
    assert len(list((tmp_path / "history").glob("*/*"))) == 2  # appends of two processes make one segment
    again.close()
    assert {name: texts for name, texts in read_history(tmp_path / "history").items()} == {
        "acme/code": [([9], [1, 2]), ([], [3]), ([8], [4])],
        "other": [([], [5])],
    }


def test_files_are_private_and_say_nothing_by_their_names(tmp_path, folder):
    folder.append("secret-project", [text([1])], NOW_S)
    for path in [tmp_path / "history", *(tmp_path / "history").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
        assert "secret" not in path.name
    folder.close()
    (tmp_path / "history").chmod(0o750)
    with pytest.raises(DatastoreError, match="mode 0750"):
        opened(tmp_path / "history")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    tmp_path.chmod(0o700)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DatastoreError, match="something else"):
        opened(tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]
    with pytest.raises(MissingPath):
        HistoryFolder.open_existing(tmp_path)
    with pytest.raises(MissingPath):
        opened(tmp_path / "no" / "such")


def test_one_process_has_it_at_a_time(tmp_path, folder):
    with pytest.raises(DatastoreError, match="a server or another command uses the history"):
        HistoryFolder.open_existing(tmp_path / "history")
    folder.close()
    HistoryFolder.open_existing(tmp_path / "history").close()


@pytest.mark.row("F8")
def test_tokenizers_are_told_apart_where_both_are_known(tmp_path):
    mine, other = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    HistoryFolder.open(tmp_path / "h", VOCAB_SIZE, mine).close()
    HistoryFolder.open(tmp_path / "h", VOCAB_SIZE).close()
    HistoryFolder.open(tmp_path / "h", VOCAB_SIZE + 7, mine).close()
    HistoryFolder.open(tmp_path / "h", VOCAB_SIZE + 7).close()  # it grew
    for size, fingerprint in ((VOCAB_SIZE + 7, other), (VOCAB_SIZE, mine), (VOCAB_SIZE, None)):
        with pytest.raises(TokenizerMismatch):
            HistoryFolder.open(tmp_path / "h", size, fingerprint)


def test_a_long_session_keeps_its_newest_tokens(folder):
    prompt, output = np.arange(MAX_PROMPT_TOKENS + 5), np.arange(MAX_OUTPUT_TOKENS + 3) % VOCAB_SIZE
    folder.append("default", [text(output, prompt)], NOW_S)
    (found,) = folder.read("default")
    np.testing.assert_array_equal(found.prompt, prompt[5:])
    np.testing.assert_array_equal(found.output, output[3:])


@pytest.mark.row("F1")
@given(
    st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=8), min_size=1, max_size=5),
    st.data(),
)
@settings(deadline=None)
def test_any_cut_and_any_changed_bit_costs_the_records_behind_it_alone(outputs, data):
    texts = [text(output, output[:2]) for output in outputs]
    records = [header_bytes("default"), *map(record_bytes, texts)]
    whole = b"".join(records)
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    ends = np.cumsum([len(record) for record in records])
    num_whole = int(np.searchsorted(ends, at, "right"))  # records that end before the damage
    for damaged in (whole[:at], bytes(changed)):
        content = read_segment(damaged, VOCAB_SIZE)
        if num_whole == 0:
            assert content is None
        else:
            assert lists(content.texts) == lists(texts[: num_whole - 1])
            assert content.num_valid_bytes == ends[num_whole - 1]


@pytest.mark.row("F-fuzz")
@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data):
    assert read_segment(data, VOCAB_SIZE) is None
    content = read_segment(header_bytes("default") + data, VOCAB_SIZE)
    assert content.texts == []


@pytest.mark.row("F2")
def test_ids_of_no_vocabulary_are_not_read():
    for wrong in (VOCAB_SIZE, -1, 2**31 - 1):
        data = header_bytes("default") + record_bytes(text([1])) + record_bytes(text([2, wrong]))
        assert lists(read_segment(data, VOCAB_SIZE).texts) == [([], [1])]


@pytest.mark.row("F2")
def test_lengths_that_lie_take_no_memory():
    for lengths in ((2**32 - 1, 2**32 - 1), (MAX_PROMPT_TOKENS, MAX_OUTPUT_TOKENS)):
        data = header_bytes("default") + np.array(lengths, "<u4").tobytes() + bytes(100)
        tracemalloc.start()
        try:
            assert read_segment(data, VOCAB_SIZE).texts == []
            assert tracemalloc.get_traced_memory()[1] < 1 << 16
        finally:
            tracemalloc.stop()


@pytest.mark.row("D4")
def test_a_torn_end_is_cut_off_before_more_is_written(tmp_path, folder):
    folder.append("default", [text([1]), text([2] * 100)], NOW_S)
    folder.close()
    segment = only_segment(tmp_path / "history")
    segment.write_bytes(segment.read_bytes()[:-3])
    again = opened(tmp_path / "history")
    assert lists(again.read("default")) == [([], [1])]
    assert again.num_damaged == 1
    again.append("default", [text([3])], NOW_S)
    assert lists(again.read("default")) == [([], [1]), ([], [3])]
    assert again.num_damaged == 1
    again.close()
    assert read_history(tmp_path / "history") == {"default": [([], [1]), ([], [3])]}
    again = opened(tmp_path / "history")
    again.read("default")
    assert again.num_damaged == 0
    again.close()


def test_a_damaged_segment_costs_no_other_one(tmp_path):
    history = opened(tmp_path / "history", max_bytes=1)  # segments as small as they get
    history._limits = HistoryLimits(max_bytes=64 * 4_096)
    for number in range(5):
        history.append("default", [text([number] * 1_100)], NOW_S)
    history.close()
    first, second, *_, last = sorted((tmp_path / "history").glob("*/*"))
    first.write_bytes(b"garbage")
    second.unlink()
    os.mkfifo(second)
    last.write_bytes(header_bytes("another") + record_bytes(text([9])))
    again = opened(tmp_path / "history")
    assert [one.output[0] for one in again.read("default")] == [2, 3]
    again.append("default", [text([7])], NOW_S)
    assert [one.output[0] for one in again.read("default")] == [2, 3, 7]
    again.close()


@pytest.mark.row("F5/F6")
def test_what_belongs_to_nobody_is_removed_and_links_are_not_followed(tmp_path, folder):
    folder.append("default", [text([1])], NOW_S)
    folder.close()
    history = tmp_path / "history"
    (history / ("0" * 32)).mkdir()
    (history / ("0" * 32) / "00000000-0000000000").write_bytes(header_bytes("default"))
    (history / ("1" * 32)).symlink_to(tmp_path)
    (history / ".x.tmp-0123456789abcdef").write_bytes(b"half")
    again = opened(history)
    assert [listed.namespace for listed in again.listing()] == ["default"]
    assert not (history / ("0" * 32)).exists()
    assert not (history / ".x.tmp-0123456789abcdef").exists()
    assert tmp_path.exists()
    again.close()


def test_facts_that_were_altered_are_refused(tmp_path, folder):
    folder.close()
    facts = tmp_path / "history" / "history.json"
    facts.write_bytes(facts.read_bytes().replace(b"151936", b"151937"))
    with pytest.raises(DatastoreCorrupt):
        opened(tmp_path / "history")


def test_the_oldest_segments_of_whoever_holds_most_go_first(tmp_path):
    history = opened(tmp_path / "history", max_bytes=64 * 4_096)
    history.append("a-small/a", [text([7] * 1_100)], NOW_S)
    names = [f"large/{number}" for number in range(5)]
    for number in range(75):
        history.append(names[number % 5], [text([number] * 1_100)], NOW_S + number)
        assert history.num_bytes <= 64 * 4_096
    assert lists(history.read("a-small/a")) == [([], [7] * 1_100)]
    kept = [one.output[0] for name in names for one in history.read(name)]
    assert sorted(kept) == list(range(75 - len(kept), 75))
    assert len(kept) == 57  # as many as have room beside the other tenant's
    history.close()


def test_a_namespace_keeps_its_newest_segments(tmp_path):
    history = opened(tmp_path / "history", max_bytes=64 * 4_096)
    for number in range(MAX_SEGMENTS + 3):
        history.append("default", [text([number] * 1_100)], NOW_S)
    assert [one.output[0] for one in history.read("default")] == list(range(3, MAX_SEGMENTS + 3))
    history.close()


@pytest.mark.row("S2")
def test_no_namespace_and_no_flood_of_them_keeps_more_than_it_may(tmp_path, monkeypatch):
    monkeypatch.setattr(history_folder, "MAX_NAMESPACES", 4)
    history = opened(tmp_path / "history", max_bytes=20_000)
    history.append("other", [text([1])], NOW_S)
    for number in range(9):
        history.append(f"flood/{number}", [text([number])], NOW_S + number)
    names = [listed.namespace for listed in history.listing()]
    assert names == ["flood/6", "flood/7", "flood/8", "other"]
    for number in range(30):
        history.append("flood/8", [text([number] * 1_000)], NOW_S)
    assert history.num_bytes <= 20_000
    assert history.holds("other")
    history.append("flood/9", [text([1] * 10_000)], NOW_S)  # more than all may have together
    assert history.num_bytes <= 20_000
    history.close()


def test_nothing_is_older_than_it_may_be_and_what_is_young_stays(tmp_path):
    history = opened(tmp_path / "history", max_age_s=800)
    for second in range(0, 2_000, 50):
        history.append("default", [text([second])], NOW_S + second)
        history.expire(NOW_S + second)
        ages = [second - one.output[0] for one in history.read("default")]
        assert max(ages) <= 800
        assert max(ages) >= min(second, 800 - 800 / 8 - 50)
    history.expire(NOW_S + 10_000)
    assert history.listing() == []
    assert [path.name for path in (tmp_path / "history").iterdir()] == ["history.json"]
    history.close()


@pytest.mark.row("T2")
def test_a_forgotten_namespace_is_nowhere_in_the_folder(tmp_path, folder):
    canary = as_int32(CANARY).tobytes()
    for number in range(5):
        folder.append("theirs", [text([*CANARY, number], CANARY)], NOW_S)
        folder.append("ours", [text([number])], NOW_S)
    assert any(canary in path.read_bytes() for path in (tmp_path / "history").rglob("*") if path.is_file())
    assert folder.forget("theirs")
    assert not folder.forget("theirs")
    assert not any(
        canary in path.read_bytes() or b"theirs" in path.read_bytes()
        for path in (tmp_path / "history").rglob("*")
        if path.is_file()
    )
    assert folder.read("theirs") == []
    assert len(folder.read("ours")) == 5


def test_what_could_not_be_deleted_at_once_is_deleted_when_asked_again(tmp_path, folder, monkeypatch):
    def refuse(*_, **__):
        raise OSError(5, "Input/output error")

    folder.append("theirs", [text(CANARY)], NOW_S)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(DatastoreError, match="Input/output error"):
            folder.forget("theirs")
    assert len(list((tmp_path / "history").glob(".*.gone-*"))) == 1
    assert folder.read("theirs") == []
    assert folder.forget("theirs")
    assert not folder.forget("theirs")
    assert [path.name for path in (tmp_path / "history").iterdir()] == ["history.json"]


def test_without_an_age_nothing_is_too_old(folder):
    folder.append("default", [text([1])], NOW_S)
    assert folder.expire(NOW_S + 10**10) == 0
    assert lists(folder.read("default")) == [([], [1])]


def test_the_command_lists_and_forgets_while_no_server_uses_the_folder(tmp_path, folder, capsys):
    path = tmp_path / "history"
    for name in ("acme/code", "other"):
        folder.append(name, [text(CANARY)], NOW_S)
    assert main(["history", "forget", str(path), "acme/code"]) == 2
    assert "a server or another command uses the history" in capsys.readouterr().err
    folder.close()
    assert main(["history", "list", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["namespaces"]) == ["acme/code", "other"]
    assert said["namespaces"]["other"]["begun"] == "2023-11-14T22:13:20+00:00"
    assert said["num_bytes"] == sum(one["num_bytes"] for one in said["namespaces"].values())
    for was_kept in (True, False):
        assert main(["history", "forget", str(path), "acme/code", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["was_kept"] is was_kept
    assert main(["history", "list", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "other" in shown
    assert "acme" not in shown
    assert set(read_history(path)) == {"other"}
    assert main(["history", "list", str(tmp_path / "nowhere")]) == 2
    assert main(["history", "list", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_damaged_file_name_does_not_stop_the_list(tmp_path, folder, capsys):
    folder.append("other", [text([1])], NOW_S)
    folder.close()
    segment = only_segment(tmp_path / "history")
    segment.rename(segment.with_name("ffffffff-ffffffffff"))
    assert main(["history", "list", str(tmp_path / "history")]) == 0
    assert "unknown" in capsys.readouterr().out
    again = opened(tmp_path / "history")
    again.append("other", [text([2])], NOW_S)
    assert lists(again.read("other")) == [([], [1]), ([], [2])]
    again.close()


def write_and_forget(path):
    history = opened(path, max_bytes=64 * 4_096)
    for number in range(3):
        history.append("ours", [text([number] * 700), text([number] * 700)], NOW_S)
    history.forget("theirs")


@pytest.mark.row("D1")
@pytest.mark.parametrize("seam", [*SEAMS, "pwrite"])
def test_a_kill_anywhere_leaves_whole_records_and_all_or_nothing_of_what_is_forgotten(tmp_path, seam):
    before = tmp_path / "before"
    history = opened(before)
    history.append("theirs", [text(CANARY)], NOW_S)
    history.close()
    num_written = []
    for call in range(1, 200, SEAMS.get(seam, 1)):
        path = tmp_path / f"{seam}-{call}"
        shutil.copytree(before, path)
        ended = run_until(seam, call, lambda path=path: write_and_forget(path))
        again = opened(path)
        written = [one.output[0] for one in again.read("ours")]
        assert written == sorted([*range(3), *range(3)])[: len(written)]
        assert lists(again.read("theirs")) in ([], [([], CANARY)])
        again.append("ours", [text([9])], NOW_S)
        assert [one.output[0] for one in again.read("ours")] == [*written, 9]
        again.close()
        num_written.append(len(written))
        if ended == "done":
            break
    assert num_written[-1] == 6
    assert read_history(path)["ours"][-1] == ([], [9])


@pytest.mark.row("D3")
def test_a_full_disk_costs_what_could_not_be_written_alone(tmp_path, folder, monkeypatch):
    folder.append("default", [text([1])], NOW_S)
    real, left = os.pwrite, [10]

    def short(fd, data, offset):
        if not left[0]:
            raise OSError(28, "No space left on device")
        written = real(fd, bytes(data)[: left[0]], offset)
        left[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", short)
        with pytest.raises(DatastoreError, match="No space left"):
            folder.append("default", [text([2])], NOW_S)
    folder.append("default", [text([3])], NOW_S)
    assert lists(folder.read("default")) == [([], [1]), ([], [3])]
    folder.close()
    again = opened(tmp_path / "history")
    assert lists(again.read("default")) == [([], [1]), ([], [3])]
    assert again.num_damaged == 0
    again.close()


@pytest.mark.row("D3", "D4")
def test_nothing_stands_behind_what_is_torn_and_cannot_be_cut_off(tmp_path, folder, monkeypatch):
    def fail(*arguments):
        raise OSError(5, "Input/output error")

    folder.append("default", [text([1])], NOW_S)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)  # what it brought to the disk nobody knows
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(DatastoreError, match="Input/output error"):
            folder.append("default", [text([2])], NOW_S)
    folder.append("default", [text([3])], NOW_S)
    assert len(list((tmp_path / "history").glob("*/*"))) == 2
    assert lists(folder.read("default"))[-1] == ([], [3])


@pytest.mark.row("F9")
def test_the_golden_history_stays_readable_and_is_written_byte_for_byte(tmp_path):
    golden = shutil.copytree(GOLDEN, tmp_path / "golden")
    golden.chmod(0o700)
    history = opened(golden)
    names = ["default", "acme.example/code_1"]
    read = {name: lists(history.read(name)) for name in names}
    assert read == read_history(golden)
    assert read["default"] == [([3, 1, 4], [1, 5, 9, 2, 6]), ([], [VOCAB_SIZE - 1]), ([7], [])]
    again = opened(tmp_path / "again", max_age_s=100 * 8)
    for (name, seconds), texts in {
        ("default", 1_700_000_000): history.read("default")[:2],
        ("default", 1_700_000_600): history.read("default")[2:],
        ("acme.example/code_1", 1_700_000_300): history.read("acme.example/code_1"),
    }.items():
        again.append(name, texts, seconds)
    command = [sys.executable, "tools/make_golden_history.py", str(tmp_path / "made")]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    files = {path.relative_to(GOLDEN): path.read_bytes() for path in GOLDEN.rglob("*") if path.is_file()}
    assert len(files) == 4
    for other in (tmp_path / "again", tmp_path / "made"):
        assert {path: (other / path).read_bytes() for path in files} == files
    history.close()
    again.close()
