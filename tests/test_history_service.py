"""Learning that lasts: a killed server drafts as before, tenants stay apart, what is forgotten is gone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import stat
import time

import numpy as np
import pytest

from retrieval_spec import wire
from retrieval_spec.cli import main
from retrieval_spec.client import DraftClient
from retrieval_spec.datastore.history_folder import HistoryFolder
from retrieval_spec.drafters.base import Budget
from retrieval_spec.drafters.history import HistoryDrafter
from retrieval_spec.drafters.prompts import PromptsDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.errors import DatastoreError, InvalidRequest, TokenizerMismatch, UnknownSession
from retrieval_spec.service import history as keeping
from retrieval_spec.service import retold as telling
from retrieval_spec.service.admin import Administration
from retrieval_spec.service.config import ServerConfig
from retrieval_spec.service.history import HistoryKeeper
from retrieval_spec.service.retold import Retold
from retrieval_spec.service.server import start_server
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.shelf import Shelf
from retrieval_spec.v1 import draft_pb2 as pb
from tests.reference.acceptance import drafted_paths
from tests.reference.history_format import read_history
from tests.replay import num_accepted, recorded
from tests.service_process import VOCAB_SIZE, server_process

CANARY = [61_234, 55_555, 49_876, 68_001]


def passages(seed, num_outputs, num_phrases=40):
    """Outputs of 12 phrases each, of which all of one seed share the same ones: later ones repeat earlier."""
    rng = np.random.default_rng(seed)
    phrases = [rng.integers(0, VOCAB_SIZE, rng.integers(6, 12)).tolist() for _ in range(num_phrases)]
    texts = [
        [token for phrase in rng.integers(0, num_phrases, 12) for token in phrases[phrase]]
        for _ in range(num_outputs)
    ]
    return [(text[:10], text[10:]) for text in texts]


def accepted(session, output):
    """Replays an output; returns the number of steps."""
    at = num_steps = 0
    while at < len(output):
        size = num_accepted(drafted_paths(session.draft(16)), output[at:])
        session.commit(output[at : at + size + 1])
        at, num_steps = at + size + 1, num_steps + 1
    return num_steps


def mean_acceptance_length(client, texts):
    """Of sessions that are left open, so that they teach nothing."""
    num_steps = sum(accepted(client.open_session(prompt), output) for prompt, output in texts)
    return sum(len(output) for _, output in texts) / num_steps


def wait_until(condition, patience_s=20.0):
    give_up_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


def texts_on_disk(folder):
    return sum(map(len, read_history(folder).values())) if (folder / "history.json").exists() else 0


def survives_kill_9(tmp_path, learned, probes, vocab_size):
    """Returns the mean acceptance length of a fresh server, before a kill -9, and after it."""
    folder, engine = tmp_path / "history", f"default@{vocab_size}"
    settings = {"history": str(folder), "history_flush_s": 0.1}
    found = []
    for number in range(2):
        listen = f"unix:{tmp_path / str(number)}.sock"
        with server_process(listen, engine, **settings) as (process, address):
            with DraftClient(address, timeout_s=30) as client:
                if number == 0:
                    found.append(mean_acceptance_length(client, probes))
                    for prompt, output in learned:
                        session = client.open_session(prompt)
                        accepted(session, output)
                        session.close()
                    wait_until(lambda: texts_on_disk(folder) == len(learned))
                found.append(mean_acceptance_length(client, probes))
            process.kill()
            process.wait(10)
    return found


@pytest.mark.row("V4")
def test_a_server_drafts_after_kill_9_as_it_did_before(tmp_path):
    texts = passages(seed=1, num_outputs=14)
    fresh, before, after = survives_kill_9(tmp_path, texts[:10], texts[10:], VOCAB_SIZE)
    assert before > 1.5 * fresh
    assert abs(after / before - 1) <= 0.02


@pytest.mark.row("V4")
@pytest.mark.long
@pytest.mark.parametrize("family", ["agent_tools", "chat", "code", "maths"])
def test_a_server_drafts_after_kill_9_as_it_did_before_on_recorded_outputs(tmp_path, data_dir, family):
    texts = [(prompt, output[:400]) for prompt, output in recorded(data_dir, family, 60)]
    fresh, before, after = survives_kill_9(tmp_path, texts[:40], texts[40:], 152_000)
    print(family, fresh, before, after)
    assert before > fresh
    assert abs(after / before - 1) <= 0.02


def keeper_of(engine, path, **options):
    folder = HistoryFolder.open(path, engine.vocab_size)
    keeper = HistoryKeeper(engine.memory, folder, 0.1, **options)
    keeper.start()
    return keeper


def served(path):
    """A servicer with a history, of an engine that knows nothing."""
    servicer = Servicer(Engine(VOCAB_SIZE))
    servicer.accepts_sessions = True
    servicer.history = keeper_of(servicer.engine, path)
    return servicer


class OnThisMachine:
    """What a servicer asks of a call."""

    def peer(self):
        return "unix:"


async def opened(servicer, prompt, namespace):
    request = pb.OpenSessionRequest(prompt_token_ids=np.array(prompt, "<i4").tobytes(), namespace=namespace)
    return (await servicer.OpenSession(request, OnThisMachine())).session_id


async def write(servicer, prompt, output, namespace):
    session_id = await opened(servicer, prompt, namespace)
    servicer.sessions.get(session_id).commit(output)
    servicer.close(session_id)


async def replies(servicer, texts, namespace):
    """The bytes of every answer while outputs are replayed."""
    answers = []
    for prompt, output in texts:
        session_id, length = await opened(servicer, prompt, namespace), len(prompt)
        for begin in range(0, len(output), 3):
            step, result = pb.DraftStep(), pb.DraftStepResult()
            commit = np.array(output[begin : begin + 3], np.int32)
            wire.write_step(step, [wire.SessionStep(session_id, length, commit, 16)], 16)
            servicer.answer(step, result)
            result.incarnation = 0
            answers.append(result.SerializeToString())
            length += commit.shape[0]
        servicer.close(session_id)
    return answers


@pytest.mark.row("T1")
def test_a_tenants_replies_are_the_same_bytes_whatever_others_left_on_disk(tmp_path):
    ours, theirs = passages(2, 7), passages(2, 7)  # the same phrases: any leak would be drafted

    async def replayed(path, with_others):
        first = served(path)
        for prompt, output in ours[:5]:
            await write(first, prompt, output, "ours")
            if with_others:
                await write(first, *theirs[0], "theirs")
                await write(first, prompt, output[::-1], "ours-not")
        await first.history.stop()
        second = served(path)
        if with_others:
            await opened(second, [1], "theirs")
        answers = await replies(second, ours[5:], "ours")
        await second.history.stop()
        return answers

    alone = asyncio.run(replayed(tmp_path / "alone", False))
    assert alone == asyncio.run(replayed(tmp_path / "beside", True))
    assert any(len(answer) > 60 for answer in alone)  # something was drafted


def test_what_is_recalled_drafts_like_what_was_never_forgotten(tmp_path):
    texts = passages(3, 10)

    async def run():
        first = served(tmp_path / "history")
        for prompt, output in texts[:8]:
            await write(first, prompt, output, "default")
        await first.history.stop()
        second = served(tmp_path / "history")
        assert "default" not in second.engine.memory
        await opened(second, [1], "default")
        for name in ("history", "prompts"):
            kept, recalled = (one.engine.drafters[name] for one in (first, second))
            num_nodes = 0
            for prompt, output in texts:
                for end in range(1, 20):
                    context = np.array([*prompt, *output][:end], np.int32)
                    tree = kept.start(context).propose(Budget(16))
                    assert tree == recalled.start(context).propose(Budget(16))
                    num_nodes += len(tree)
            assert num_nodes > 500
        await second.history.stop()

    asyncio.run(run())


def test_a_namespace_that_had_to_go_from_memory_comes_back_from_disk(tmp_path):
    async def run():
        servicer = served(tmp_path / "history")
        await write(servicer, [1], CANARY * 5, "mine")
        servicer.engine.memory.forget("mine")  # as when there is no room; nothing was written yet
        session = servicer.sessions.get(await opened(servicer, [2, *CANARY[:3]], "mine"))
        assert session.draft(1).token_ids.tolist() == [CANARY[3]]
        await servicer.history.stop()

    asyncio.run(run())


def test_many_first_sessions_of_a_namespace_teach_it_once(tmp_path):
    async def run():
        servicer = served(tmp_path / "history")
        await write(servicer, [1], CANARY * 5, "mine")
        servicer.engine.memory.forget("mine")
        await asyncio.gather(*[opened(servicer, [2], "mine") for _ in range(5)])
        texts = servicer.engine.drafters["history"].namespaces.of("mine").texts
        assert texts.automaton.num_tokens == 20
        assert len(servicer.history._folder.read("mine")) == 1
        await servicer.history.stop()

    asyncio.run(run())


def holds_canary(servicer, folder):
    """Whether canary tokens are in any file, or in any array that a source keeps of any namespace."""
    canary = np.array(CANARY, "<i4").tobytes()
    on_disk = any(canary in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    in_memory = any(
        learned.texts.automaton.num_occurrences(np.array(CANARY, np.int32)) > 0
        for drafter in servicer.engine.drafters.values()
        if isinstance(drafter, HistoryDrafter | PromptsDrafter)
        for learned in drafter.namespaces._learned.values()
    )
    return on_disk, in_memory


@pytest.mark.row("T2")
def test_a_forgotten_namespace_is_gone_from_memory_and_disk_and_does_not_come_back(tmp_path):
    folder = tmp_path / "history"

    async def run():
        servicer = served(folder)
        await write(servicer, CANARY, CANARY * 3, "theirs")
        await write(servicer, [1], [2, 3], "ours")
        await servicer.history._run(servicer.history._write, servicer.history._take_all())
        assert holds_canary(servicer, folder) == (True, True)
        running = await opened(servicer, CANARY, "theirs")  # holds it too, and would teach it again
        await write(servicer, CANARY, CANARY, "theirs")  # waits for the disk
        assert await servicer.forget("theirs")
        assert holds_canary(servicer, folder) == (False, False)
        assert servicer.engine.num_sessions == 0
        servicer.close(running)
        session = servicer.sessions.get(await opened(servicer, CANARY[:2], "theirs"))
        assert set(session.draft(8).token_ids.tolist()) <= set(CANARY[:2])  # its own context
        session.discard()
        assert await servicer.forget("nobody") is False
        await servicer.history.stop()
        assert holds_canary(servicer, folder) == (False, False)
        assert set(read_history(folder)) == {"ours"}

    asyncio.run(run())


@pytest.mark.row("T2")
def test_what_comes_while_a_namespace_is_forgotten_does_not_bring_it_back(tmp_path):
    folder = tmp_path / "history"

    async def run():
        servicer = served(folder)
        await write(servicer, CANARY, CANARY * 3, "theirs")
        forgetting = asyncio.ensure_future(servicer.forget("theirs"))
        await asyncio.sleep(0)
        session_id = await opened(servicer, CANARY, "theirs")  # knows what is being forgotten
        servicer.sessions.get(session_id).commit(CANARY)
        servicer.history.note("theirs", np.array(CANARY, np.int32), np.array(CANARY, np.int32))
        assert await forgetting
        await servicer.history.stop()
        assert holds_canary(servicer, folder) == (False, False)
        assert servicer.engine.num_sessions == 0

    asyncio.run(run())


def test_an_operator_deletes_what_a_namespace_taught(tmp_path, capsys):
    folder, socket = tmp_path / "history", f"unix:{tmp_path}/admin.sock"

    def ask(*words):
        code = main(["admin", "--socket", socket, "forget", *words, "--json"])
        return code, capsys.readouterr()

    async def run():
        servicer = served(folder)
        await write(servicer, CANARY, CANARY * 3, "acme/theirs")
        await write(servicer, [1], [2, 3], "acme/ours")
        await servicer.history._run(servicer.history._write, servicer.history._take_all())
        running = await opened(servicer, CANARY, "acme/theirs")
        administration = Administration(servicer, Shelf(servicer.engine, []), ServerConfig(admin=socket))
        await administration.start()
        try:
            assert holds_canary(servicer, folder) == (True, True)
            code, said = await asyncio.to_thread(ask, "acme/theirs")
            assert (code, json.loads(said.out)["was_kept"]) == (0, True)
            assert holds_canary(servicer, folder) == (False, False)
            with pytest.raises(UnknownSession):
                servicer.sessions.get(running)
            code, said = await asyncio.to_thread(ask, "acme/theirs")
            assert (code, json.loads(said.out)["was_kept"]) == (0, False)
            for wrong in ("", "x" * 200):
                code, said = await asyncio.to_thread(ask, wrong)
                assert (code, len(said.err.splitlines())) == (2, 1)
        finally:
            await administration.stop()
            await servicer.history.stop()
        assert set(read_history(folder)) == {"acme/ours"}

    asyncio.run(run())


def test_what_an_operator_forgets_in_part_is_reported(tmp_path, capsys, monkeypatch):
    async def run():
        servicer = served(tmp_path / "history")
        await write(servicer, CANARY, CANARY * 3, "theirs")
        await servicer.history._run(servicer.history._write, servicer.history._take_all())

        def refused(namespace):
            raise DatastoreError("the file system refused")

        monkeypatch.setattr(servicer.history._folder, "forget", refused)
        config = ServerConfig(admin=f"unix:{tmp_path}/admin.sock")
        administration = Administration(servicer, Shelf(servicer.engine, []), config)
        await administration.start()
        try:
            words = ["admin", "--socket", config.admin, "forget", "theirs"]
            assert await asyncio.to_thread(main, words) == 2
            assert "the file system refused" in capsys.readouterr().err
            assert "theirs" not in servicer.engine.memory
        finally:
            await administration.stop()
            await servicer.history.stop()

    asyncio.run(run())


def test_forgetting_needs_no_history_on_disk():
    servicer = Servicer(Engine(VOCAB_SIZE))
    servicer.accepts_sessions = True

    async def run():
        await write(servicer, CANARY, CANARY * 3, "theirs")
        assert await servicer.forget("theirs")
        assert "theirs" not in servicer.engine.memory

    asyncio.run(run())


def test_a_discarded_session_teaches_nothing_and_frees_its_memory():
    engine = Engine(VOCAB_SIZE)
    session = engine.open_session(CANARY)
    session.commit(CANARY * 4)
    session.discard()
    session.discard()
    session.close()
    assert (engine.num_sessions, engine.ledger.num_bytes) == (0, 0)
    assert CANARY[3] not in engine.open_session(CANARY[:3]).draft(4).token_ids


@pytest.mark.row("D3")
def test_a_disk_that_fails_is_told_of_once_and_costs_no_draft(tmp_path, monkeypatch, caplog):
    async def run():
        servicer = served(tmp_path / "history")

        def full(*arguments):
            raise DatastoreError("cannot write", got="No space left on device")

        monkeypatch.setattr(servicer.history._folder, "append", full)
        for _ in range(3):
            await write(servicer, [1], CANARY * 5, "mine")
            await servicer.history._run(servicer.history._write, servicer.history._take_all())
        assert servicer.num_history_lost == 3
        session = servicer.sessions.get(await opened(servicer, [2, *CANARY[:3]], "mine"))
        assert session.draft(1).token_ids.tolist() == [CANARY[3]]
        await servicer.history.stop()

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    (line,) = [record.getMessage() for record in caplog.records]
    assert "No space left" in line
    assert "mine" not in line


def test_a_chat_is_written_once_and_not_again_with_every_turn(tmp_path):
    whole = np.random.default_rng(6).integers(0, VOCAB_SIZE, 6 * 300).tolist()
    chats = [whole[: number * 300] for number in range(1, 7)]

    async def run():
        servicer = served(tmp_path / "history")
        for chat in chats:
            await write(servicer, chat, [7], "mine")
            await write(servicer, [9] * 200, [8], "mine")  # another chat between its turns
        await servicer.history.stop()
        return await replies(served(tmp_path / "history"), [(chats[-1][:20], chats[-1][20:200])], "mine")

    answers = asyncio.run(run())
    assert any(len(answer) > 60 for answer in answers)  # the first turn is still known
    prompts = [prompt for prompt, _ in read_history(tmp_path / "history")["mine"]][::2]
    assert prompts[0] == chats[0]
    for prompt, chat, before in zip(prompts[1:], chats[1:], chats, strict=False):
        assert chat[-len(prompt) :] == prompt
        assert 300 + 64 <= len(prompt) < 300 + 3 * 64
        assert before[-64:] == prompt[:-300][-64:]  # one piece leads over to what is new


def test_what_was_told_is_told_anew_after_it_was_forgotten():
    retold, prompt = Retold(), np.arange(640, dtype=np.int32)
    assert len(retold.new_part("mine", prompt)) == 640
    assert len(retold.new_part("theirs", prompt)) == 640
    assert retold.new_part("mine", prompt).tolist() == list(range(576, 640))
    changed = prompt.copy()
    changed[130] = 7
    assert retold.new_part("mine", changed).tolist() == changed[64:].tolist()
    retold.forget("mine")
    assert len(retold.new_part("mine", prompt)) == 640
    assert len(retold.new_part("mine", prompt[:0])) == 0


def test_what_is_known_of_prompts_takes_bounded_memory(monkeypatch):
    monkeypatch.setattr(telling, "MAX_BLOCKS", 4)
    monkeypatch.setattr(telling, "MAX_NAMESPACES", 2)
    retold, prompt = Retold(), np.arange(640, dtype=np.int32)
    short = np.arange(10_000, 10_256, dtype=np.int32)
    retold.new_part("mine", prompt)
    assert len(retold.new_part("mine", prompt)) == 640, "of ten blocks the first are forgotten"
    retold.new_part("mine", short)
    assert len(retold.new_part("mine", short)) == 64
    retold.new_part("one", short)
    retold.new_part("mine", short)
    retold.new_part("other", short)  # in place of `one`, which was unused longest
    assert len(retold.new_part("mine", short)) == 64
    assert len(retold.new_part("one", short)) == 256


@pytest.mark.row("S2")
def test_what_waits_for_the_disk_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(keeping, "MAX_PENDING_BYTES", 1_000)

    async def run():
        servicer = served(tmp_path / "history")
        for _ in range(5):
            await write(servicer, [1], list(range(100)), "mine")
        assert servicer.num_history_lost == 2
        servicer.history.tick()
        await servicer.history._writing
        assert texts_on_disk(tmp_path / "history") == 3
        await servicer.history.stop()

    asyncio.run(run())


def test_text_waits_for_the_disk_no_longer_than_the_interval(tmp_path):
    now = [100.0]

    async def run():
        servicer = served(tmp_path / "unused")
        await servicer.history.stop()
        servicer.history = keeper_of(servicer.engine, tmp_path / "history", clock=lambda: now[0])
        for number in range(3):
            await write(servicer, [1], [2, number], "mine")
            now[0] += 0.1
            servicer.history.tick()
            await servicer.history._writing
            assert texts_on_disk(tmp_path / "history") == number + 1
        await servicer.history.stop()

    asyncio.run(run())


def test_old_text_is_deleted_while_the_server_runs(tmp_path):
    now = [1_700_000_000.0]

    async def run():
        engine = Engine(VOCAB_SIZE)
        config = ServerConfig(history=str(tmp_path / "history"), history_max_age_s=60)
        keeper = HistoryKeeper.open(engine, config)
        keeper._clock = keeper._wall_clock = lambda: now[0]
        keeper.start()
        keeper.note("mine", np.array([1], np.int32), np.array([2], np.int32))
        keeper.tick()
        await keeper._writing
        assert texts_on_disk(tmp_path / "history") == 1
        now[0] += 70
        keeper._expiry_due_s = now[0]
        keeper.tick()
        await keeper._writing
        assert texts_on_disk(tmp_path / "history") == 0
        await keeper.stop()

    asyncio.run(run())


def test_a_server_that_stops_writes_what_it_has_and_lets_go_of_the_folder(tmp_path):
    folder = tmp_path / "history"
    config = ServerConfig(history=str(folder), history_flush_s=3_600)

    async def run():
        engine = Engine(VOCAB_SIZE)
        server = await start_server(engine, f"unix:{tmp_path / 'a.sock'}", config)
        with pytest.raises(DatastoreError, match="uses the history"):
            await start_server(Engine(VOCAB_SIZE), f"unix:{tmp_path / 'b.sock'}", config)
        session = engine.open_session([1, 2])
        session.commit([3])
        session.close()
        await server.stop()
        with pytest.raises(TokenizerMismatch):
            await start_server(Engine(VOCAB_SIZE + 1), f"unix:{tmp_path / 'c.sock'}", config)

    asyncio.run(run())
    assert read_history(folder) == {"default": [([1, 2], [3])]}  # and nothing of the warm-up
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_the_datastores_say_whose_ids_they_are_if_they_know(tmp_path):
    engine, config = Engine(VOCAB_SIZE), ServerConfig(history=str(tmp_path / "history"))
    for fingerprints, written in (
        ({"rows": "sha256:" + "0" * 64}, "unknown"),
        ({"rows": "sha256:" + "0" * 64, "docs": "sha256:" + "a" * 64}, "sha256:" + "a" * 64),
    ):
        engine.datastores = fingerprints
        asyncio.run(HistoryKeeper.open(engine, config).stop())
        facts = json.loads((tmp_path / "history" / "history.json").read_text())
        assert facts["tokenizer_fingerprint"] == written
        shutil.rmtree(tmp_path / "history")


@pytest.mark.parametrize(
    "wrong", [{"history_flush_s": 0}, {"history_max_bytes": 1}, {"history_max_age_s": float("nan")}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        ServerConfig(**wrong)
