"""The datastores of a running server, changed over its administrative socket while others draft."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from retrieval_spec import DraftClient
from retrieval_spec.cli import main
from retrieval_spec.commands.admin import MESSAGE_DOCUMENTS, messages_of
from retrieval_spec.datastore.segments import open_segments, verify_segments
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.grow import append_token_documents
from retrieval_spec.service.admin import Administration, admin_place
from retrieval_spec.service.config import ServerConfig
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.shelf import Shelf
from retrieval_spec.v1 import datastore_pb2 as pb
from retrieval_spec.v1.datastore_pb2_grpc import DatastoreServiceStub
from tests.stores import write_corpus
from tests.warm_processes import WarmProcess, start
from tests.word_tokenizers import write_tokenizer

VOCAB_SIZE = 10_000
FINGERPRINT = "sha256:" + "0" * 64
PROMPT = [1, 2, 3]


def write(path: Path, first: int) -> Path:
    """A datastore in which `first` and its successors follow the prompt."""
    return write_corpus(path, [[*PROMPT, *range(first, first + 40)] for _ in range(6)], VOCAB_SIZE)


@contextmanager
def serving(folder: Path, *flags: str) -> Iterator[tuple[WarmProcess, DatastoreServiceStub, str]]:
    """A server of `root/docs` in a process of its own, its administration, and where drafts are asked for."""
    address = f"unix:{folder}/drafts.sock"
    command = ["--log-level", "info", "serve", "--listen", address]
    command += ["--datastore", str(folder / "root" / "docs"), "--preset", "corpus", "--load", "mmap"]
    command += ["--admin", f"unix:{folder}/admin.sock", "--admin-root", str(folder / "root"), *flags]
    with (
        (folder / "log").open("w") as log,
        start("retrieval_spec.cli", *command, stderr=log) as process,
    ):
        try:
            assert process.stdout.readline() == f"serving on {address}\n", (folder / "log").read_text()
            with grpc.insecure_channel(f"unix:{folder}/admin.sock") as channel:
                yield process, DatastoreServiceStub(channel), address
        finally:
            process.end()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("admin")
    (folder / "root").mkdir()
    write(folder / "root" / "docs", 100)
    write(folder / "root" / "other", 5_000)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with serving(folder) as served:
        yield served


@pytest.fixture
def admin(server) -> Iterator[DatastoreServiceStub]:
    """The administration of a server that drafts from `docs` alone when the test begins, and when it ends."""
    yield server[1]
    for one in server[1].List(pb.ListRequest()).datastores:
        if one.name != "docs":
            server[1].Unload(pb.UnloadRequest(name=one.name))
    if server[1].List(pb.ListRequest()).datastores:
        server[1].Swap(pb.SwapRequest(name="docs", folder="docs"))


@pytest.fixture
def client(server) -> Iterator[DraftClient]:
    with DraftClient(server[2], timeout_s=10.0) as client:
        yield client


def first_token(client) -> int:
    with closing(client.open_session(PROMPT)) as session:
        return int(session.draft(8).token_ids[0])


def refusal(call, request) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=20)
    assert len(caught.value.details().splitlines()) == 1
    return caught.value.code().name, caught.value.details()


def append_request(documents, **fields) -> pb.AppendRequest:
    columns = {
        "token_ids": np.concatenate(documents).astype("<i4").tobytes(),
        "document_lengths": np.array([len(one) for one in documents], "<i4").tobytes(),
    }
    return pb.AppendRequest(**{"name": "docs", "tokenizer_fingerprint": FINGERPRINT, **columns, **fields})


def test_it_is_private_and_the_drafting_port_does_not_know_it(folder, server):
    assert stat.S_IMODE((folder / "admin.sock").stat().st_mode) == 0o600
    with grpc.insecure_channel(server[2]) as channel:
        stub = DatastoreServiceStub(channel)
        for name in ("List", "Load", "Unload", "Swap", "Append", "Snapshot", "Stats"):
            request = getattr(pb, f"{name}Request")()
            assert refusal(getattr(stub, name), request)[0] == "UNIMPLEMENTED"


def test_drafts_are_not_asked_for_at_the_administrative_socket(folder, server):
    with grpc.insecure_channel(f"unix:{folder}/admin.sock") as channel:
        call = channel.unary_unary("/retrieval_spec.v1.DraftService/GetInfo")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=20)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_it_lists_and_counts(folder, admin, client):
    (listed,) = admin.List(pb.ListRequest()).datastores
    store = open_segments(folder / "root" / "docs")
    assert (listed.name, listed.folder, listed.kind) == ("docs", str(store.path), "context_array")
    assert (listed.num_documents, listed.num_segments) == (6, 1)
    assert (listed.num_tokens, listed.num_bytes) == (store.manifest.num_tokens, store.num_bytes)
    with closing(client.open_session(PROMPT)) as session:
        session.draft(8)
        (stats,) = admin.Stats(pb.StatsRequest()).datastores
    assert stats.datastore == listed
    assert stats.mapped_bytes == store.num_bytes
    assert stats.num_sessions >= 1
    if sys.platform == "linux":
        assert stats.resident_bytes > 0


def test_a_swap_reaches_open_sessions_and_lets_the_old_files_go(folder, server, admin, client):
    old = write(folder / "root" / "old", 7_000)
    admin.Swap(pb.SwapRequest(name="docs", folder="old"))
    with closing(client.open_session(PROMPT)) as session:
        assert session.draft(8).token_ids[0] == 7_000
        answer = admin.Swap(pb.SwapRequest(name="docs", folder="other"))
        assert answer.is_changed
        assert answer.datastore.folder == str(folder / "root" / "other")
        assert session.draft(8).token_ids[0] == 5_000
        assert admin.Stats(pb.StatsRequest()).datastores[0].retired_bytes == 0
        if Path("/proc/self/maps").exists():
            mapped = Path(f"/proc/{server[0].pid}/maps").read_text()
            assert str(folder / "root" / "other") in mapped
            assert f"{folder / 'root' / 'docs'}/" not in mapped  # what the server began with
            assert str(old) not in mapped
        shutil.rmtree(old)
        session.commit([5_000])
        assert session.draft(8).token_ids[0] == 5_001
    assert not admin.Swap(pb.SwapRequest(name="docs")).is_changed


def test_a_datastore_comes_and_goes(server, admin, client):
    with closing(client.open_session(PROMPT)) as before:
        loaded = admin.Load(pb.LoadRequest(folder="other", name="more")).datastore
        assert (loaded.name, loaded.num_documents) == ("more", 6)
        with closing(client.open_session(PROMPT)) as session:
            assert {100, 5_000} <= set(session.draft(64).token_ids.tolist())
            assert client.source_names == ("corpus:docs", "corpus:more")
            assert set(before.draft(64).token_ids.tolist()) < set(range(100, 200))
            admin.Unload(pb.UnloadRequest(name="docs"))
            assert session.draft(64).token_ids[0] == 5_000
            assert len(before.draft(64)) == 0
    assert [one.name for one in client.server_info.datastores] == ["docs", "more"]
    with DraftClient(server[2], timeout_s=10.0) as later:
        assert [one.name for one in later.server_info.datastores] == ["more"]
    admin.Load(pb.LoadRequest(folder="docs"))
    assert first_token(client) in (100, 5_000)


def test_an_append_is_drafted_from_at_once(folder, admin, client):
    write(folder / "root" / "growing", 200)
    admin.Swap(pb.SwapRequest(name="docs", folder="growing"))
    answer = admin.Append(append_request([[8, 8, 800, 801], [9, 9, 900]], origin="chat"))
    assert (answer.num_added, answer.num_duplicates) == (2, 0)
    assert (answer.datastore.generation, answer.datastore.num_segments) == (1, 2)
    with closing(client.open_session([8, 8])) as session:
        assert session.draft(8).token_ids.tolist()[:2] == [800, 801]
    again = admin.Append(append_request([[9, 9, 900], [9, 9, 901]]))
    assert (again.num_added, again.num_duplicates, again.datastore.num_documents) == (1, 1, 9)
    assert verify_segments(folder / "root" / "growing").num_documents == 9
    shot = admin.Snapshot(pb.SnapshotRequest(name="docs", folder="shot"))
    assert shot.path == str(folder / "root" / "shot")
    assert verify_segments(shot.path).num_documents == shot.datastore.num_documents == 9
    assert refusal(admin.Snapshot, pb.SnapshotRequest(name="docs", folder="shot"))[0] == "ALREADY_EXISTS"


def damaged(path: Path) -> Path:
    data = bytearray((path / "positions.bin").read_bytes())
    data[-1] ^= 1
    (path / "positions.bin").unlink()
    (path / "positions.bin").write_bytes(data)
    return path


def test_what_cannot_be_served_is_refused_and_the_old_stays(folder, admin, client):
    damaged(write(folder / "root" / "damaged", 300))
    write_corpus(folder / "root" / "large", [[1, 2]], VOCAB_SIZE + 1)
    (folder / "root" / "out").symlink_to("/etc")
    wrong = {
        "nobody": ("NOT_FOUND", pb.SwapRequest(name="nobody")),
        "damaged": ("DATA_LOSS", pb.SwapRequest(name="docs", folder="damaged")),
        "larger vocabulary": ("FAILED_PRECONDITION", pb.SwapRequest(name="docs", folder="large")),
        "nowhere": ("NOT_FOUND", pb.SwapRequest(name="docs", folder="nowhere")),
        "link": ("INVALID_ARGUMENT", pb.SwapRequest(name="docs", folder="out")),
        **{
            place: ("INVALID_ARGUMENT", pb.SwapRequest(name="docs", folder=place))
            for place in ("..", ".", "/etc", "a/b", "../root/other", "other\0", "x" * 65)
        },
    }
    assert {what: refusal(admin.Swap, request)[0] for what, (_, request) in wrong.items()} == {
        what: status for what, (status, _) in wrong.items()
    }
    assert refusal(admin.Load, pb.LoadRequest(folder="docs"))[0] == "ALREADY_EXISTS"
    assert refusal(admin.Load, pb.LoadRequest(folder="damaged"))[0] == "DATA_LOSS"
    assert refusal(admin.Load, pb.LoadRequest())[0] == "INVALID_ARGUMENT"
    assert refusal(admin.Unload, pb.UnloadRequest(name="nobody"))[0] == "NOT_FOUND"
    assert refusal(admin.Snapshot, pb.SnapshotRequest(name="docs", folder="../x"))[0] == "INVALID_ARGUMENT"
    assert first_token(client) == 100


BAD_APPENDS = {
    "no documents": ({"document_lengths": b"", "token_ids": b""}, "RESOURCE_EXHAUSTED"),
    "too many": ({"document_lengths": b"\1\0\0\0" * 65_537}, "RESOURCE_EXHAUSTED"),
    "empty document": ({"document_lengths": b"\0\0\0\0"}, "INVALID_ARGUMENT"),
    "negative length": ({"document_lengths": b"\xff\xff\xff\xff"}, "INVALID_ARGUMENT"),
    "columns do not fit": ({"document_lengths": b"\5\0\0\0"}, "INVALID_ARGUMENT"),
    "half a token": ({"token_ids": b"\1\0\0"}, "INVALID_ARGUMENT"),
    "no token of the vocabulary": ({"token_ids": b"\xff\xff\xff\x7f"}, "INVALID_ARGUMENT"),
    "negative token": ({"token_ids": b"\xff\xff\xff\xff"}, "INVALID_ARGUMENT"),
    "other tokenizer": ({"tokenizer_fingerprint": "sha256:" + "1" * 64}, "FAILED_PRECONDITION"),
    "no tokenizer": ({"tokenizer_fingerprint": ""}, "FAILED_PRECONDITION"),
    "NUL in the origin": ({"origin": "a\0b"}, "INVALID_ARGUMENT"),
    "long origin": ({"origin": "x" * 1_025}, "INVALID_ARGUMENT"),
    "nobody": ({"name": "nobody"}, "NOT_FOUND"),
}


@pytest.mark.row("C1")
@pytest.mark.parametrize(("fields", "status"), BAD_APPENDS.values(), ids=BAD_APPENDS)
def test_malformed_documents_are_refused_before_anything_is_written(folder, admin, fields, status):
    assert refusal(admin.Append, append_request([[5]], **fields))[0] == status
    assert open_segments(folder / "root" / "docs").generation == 0


@pytest.mark.row("C2/C3")
def test_bytes_that_are_no_message_are_refused(folder, server):
    with grpc.insecure_channel(f"unix:{folder}/admin.sock") as channel:
        call = channel.unary_unary("/retrieval_spec.v1.DatastoreService/Swap")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff\xff\xff", timeout=20)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.row("K3")
def test_each_draft_of_the_traffic_is_of_one_generation(folder, admin, server):
    families, errors, stopping = set(), [], threading.Event()

    def ask() -> None:
        try:
            with (
                DraftClient(server[2], timeout_s=10.0) as client,
                closing(client.open_session(PROMPT)) as session,
            ):
                while not stopping.is_set():
                    tokens = session.draft(16).token_ids
                    found = {int(token) // 1_000 for token in tokens}
                    assert len(tokens) >= 8, tokens
                    assert len(found) == 1, tokens
                    families.update(found)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(40):
        admin.Swap(pb.SwapRequest(name="docs", folder=("other", "docs")[number % 2]))
    stopping.set()
    for thread in threads:
        thread.join(20)
    assert errors == []
    assert families == {0, 5}


def wait_until(holds) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.row("K3")
def test_sighup_takes_up_what_writers_left_and_keeps_the_old_where_that_is_damaged(
    folder, server, admin, client
):
    place = write(folder / "root" / "reloaded", 400)
    admin.Swap(pb.SwapRequest(name="docs", folder="reloaded"))
    append_token_documents(
        place, [np.array([6, 6, 600], np.int32)], "", tokenizer_fingerprint=FINGERPRINT, threads=1
    )
    server[0].send_signal(signal.SIGHUP)
    wait_until(lambda: admin.List(pb.ListRequest()).datastores[0].generation == 1)
    append_token_documents(
        place, [np.array([6, 6, 601], np.int32)], "", tokenizer_fingerprint=FINGERPRINT, threads=1
    )
    for segment in (place / "segments").iterdir():
        damaged(segment)
    server[0].send_signal(signal.SIGHUP)
    wait_until(lambda: "stays in use" in (folder / "log").read_text())
    assert admin.List(pb.ListRequest()).datastores[0].generation == 1
    assert first_token(client) == 400


def command(folder, *words, capsys) -> dict:
    capsys.readouterr()
    assert main(["admin", "--socket", f"unix:{folder}/admin.sock", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_line_does_all_of_it(folder, server, admin, capsys):
    tokenizer = write_tokenizer(folder / "model", {f"w{n}": n for n in range(61)})
    from retrieval_spec.build import build_datastore
    from retrieval_spec.datastore.corpus import Corpus

    (folder / "text.jsonl").write_text('{"text": "w1 w2 w3 w4"}\n')
    (folder / "more.jsonl").write_text('{"text": "w5 w6 w7"}\n{"text": "w1 w2 w3 w4"}\n')
    place = folder / "root" / "words"
    build_datastore(Corpus([folder / "text.jsonl"]), tokenizer=tokenizer, out=place, threads=1)
    ask = lambda *words: command(folder, *words, capsys=capsys)  # noqa: E731
    assert set(ask("list")) == {"docs"}
    assert ask("stats")["docs"]["num_sessions"] >= 0
    assert ask("unload", "docs") == {"unloaded": "docs"}
    assert ask("load", "words", "--name", "docs")["num_documents"] == 1
    added = ask("append", "docs", folder / "more.jsonl", "--tokenizer", tokenizer)
    assert (added["num_added"], added["num_duplicates"], added["generation"]) == (1, 1, 1)
    assert ask("snapshot", "docs", "copied")["path"] == str(folder / "root" / "copied")
    assert not ask("swap", "docs")["is_changed"]
    assert ask("swap", "docs", "copied")["is_changed"]
    ask("unload", "docs")
    ask("load", "docs")
    assert main(["admin", "--socket", f"unix:{folder}/admin.sock", "swap", "nobody"]) == 2
    assert "no datastore has this name" in capsys.readouterr().err
    assert main(["admin", "--socket", f"unix:{folder}/nowhere.sock", "list"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.row("C1")
def test_messages_are_bounded_and_of_one_origin():
    documents = [(np.zeros(10, np.int32), "a")] * (MESSAGE_DOCUMENTS + 1) + [(np.zeros(2, np.int32), "b")]
    parts = list(messages_of(documents))
    assert [(origin, len(part)) for origin, part in parts] == [("a", MESSAGE_DOCUMENTS), ("a", 1), ("b", 1)]
    large = [(np.zeros(1 << 19, np.int32), "a")] * 5
    assert [len(part) for _, part in messages_of(large)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"admin": "0.0.0.0:0"}, "other machines"),
        ({"admin": "0.0.0.0:0", "insecure": True}, "other machines"),
        ({"admin": "127.0.0.1:0"}, "--admin-tokens"),
        ({"admin_root": "/x"}, "nobody listens"),
    ],
)
def test_it_listens_for_nobody_else(config, words):
    with pytest.raises(InvalidRequest, match=words):
        admin_place(ServerConfig(**config))


def test_on_loopback_it_wants_a_token_and_new_generations_are_taken_up_by_themselves(tmp_path):
    docs = write(tmp_path / "docs", 100)
    (tmp_path / "tokens").write_text("operator 0123456789abcdef\n")
    (tmp_path / "tokens").chmod(0o600)
    config = ServerConfig(admin="127.0.0.1:0", admin_tokens=str(tmp_path / "tokens"), reload_datastores=True)

    def ask(address, token=None):
        with grpc.insecure_channel(address) as channel:
            metadata = (("authorization", f"Bearer {token}"),) if token else ()
            answer = DatastoreServiceStub(channel).List(pb.ListRequest(), timeout=20, metadata=metadata)
        return answer.datastores[0].generation

    async def scenario():
        stores = [open_segments(docs)]
        engine = Engine(VOCAB_SIZE, preset="corpus", datastores=stores)
        administration = Administration(Servicer(engine), Shelf(engine, stores), config)
        await administration.start()
        try:
            for wrong in (None, "fedcba9876543210"):
                with pytest.raises(grpc.RpcError) as caught:
                    await asyncio.to_thread(ask, administration.address, wrong)
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            assert await asyncio.to_thread(ask, administration.address, "0123456789abcdef") == 0
            append_token_documents(
                docs, [np.array([6, 600], np.int32)], "", tokenizer_fingerprint=FINGERPRINT, threads=1
            )
            deadline = time.monotonic() + 20
            while await asyncio.to_thread(ask, administration.address, "0123456789abcdef") == 0:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        finally:
            await administration.stop()

    asyncio.run(scenario())


def large_documents(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB_SIZE, 1_000).astype(np.int32) for _ in range(count)]


def killed_while_appending(folder: Path, is_time) -> None:
    """Kills a server in the middle of an append; what is left is whole, and grows on."""
    place = folder / "root" / "docs"
    with serving(folder) as (process, admin, _):
        call = admin.Append.future(append_request(large_documents(400)))
        begin = time.monotonic()
        while not (is_time(time.monotonic() - begin) or call.done()):
            time.sleep(0.001)
        was_answered = call.done()
        os.kill(process.pid, signal.SIGKILL)
    manifest = verify_segments(place)
    assert manifest.num_documents in ((406,) if was_answered else (6, 406))
    done = append_token_documents(
        place, [np.array([4, 4, 4], np.int32)], "", tokenizer_fingerprint=FINGERPRINT, threads=1
    )
    assert done.num_added == 1
    left = {entry.name for entry in (place / "segments").iterdir()}
    assert left == {store.path.name for store in open_segments(place).stores if store.path != place}


@pytest.fixture
def to_be_killed(tmp_path) -> Path:
    (tmp_path / "root").mkdir()
    write(tmp_path / "root" / "docs", 100)
    return tmp_path


@pytest.mark.row("D5")
def test_a_server_killed_while_it_appends_leaves_one_generation_whole(to_be_killed):
    segments = to_be_killed / "root" / "docs" / "segments"
    killed_while_appending(to_be_killed, lambda _: segments.exists() and any(segments.iterdir()))


@pytest.mark.row("D5")
@pytest.mark.long
@pytest.mark.parametrize("wait_s", [0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3])
def test_killed_at_any_time(to_be_killed, wait_s):
    killed_while_appending(to_be_killed, lambda elapsed_s: elapsed_s >= wait_s)
