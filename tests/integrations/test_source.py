"""What every host's drafts begin with: settings, credentials, and whether the ids mean the same text."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.errors import (
    InvalidRequest,
    MissingDependency,
    MissingPath,
    ServiceUnavailable,
    TokenizerMismatch,
)
from retrieval_spec.integrations import source
from retrieval_spec.integrations.source import (
    HostDrafts,
    HostSettings,
    open_source,
    read_settings,
    tokenizer_folder,
)
from retrieval_spec.integrations.tokenizers import fingerprint_of
from retrieval_spec.service.config import ServerConfig
from tests.service_process import VOCAB_SIZE, counting_engine, server_thread

TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "no text"])
def test_a_token_that_cannot_be_read_is_refused_at_the_start(tmp_path, content):
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    settings = HostSettings(server="unix:nowhere", token_file=str(tmp_path / "token"))
    with pytest.raises(MissingPath, match=r"cannot read the file of the token; got .*token"):
        open_source(settings, VOCAB_SIZE)


def test_the_token_of_a_file_is_shown(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(
        source, "DraftClient", lambda server, credentials, **options: shown.append(credentials)
    )
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    open_source(HostSettings(server="unix:x", token_file=str(tmp_path / "token")), VOCAB_SIZE)
    assert shown[0].metadata == (("authorization", f"Bearer {TOKEN}"),)
    (tmp_path / "token").write_text("\n")
    with pytest.raises(InvalidRequest, match="token"):
        open_source(HostSettings(server="unix:x", token_file=str(tmp_path / "token")), VOCAB_SIZE)


def test_drafts_of_this_process_need_the_server_s_parts(monkeypatch):
    monkeypatch.setitem(sys.modules, "retrieval_spec.engine", None)
    with pytest.raises(MissingDependency, match=r"retrieval-spec\[server\]', or use a server"):
        open_source(HostSettings(server="local"), VOCAB_SIZE)


def test_a_host_may_ask_without_grpc(tmp_path):
    listen, frames = f"unix:{tmp_path}/s.sock", f"unix:{tmp_path}/f.sock"
    environment = {"RETRIEVAL_SPEC_SERVER": listen, "RETRIEVAL_SPEC_TRANSPORT": frames}
    settings = read_settings({"timeout_s": 20.0}, environment)
    with server_thread(listen, counting_engine(), ServerConfig(frames=frames)):
        client = open_source(settings, VOCAB_SIZE)
        assert client.open_session([1]).draft(2).token_ids.tolist() == [2, 3]
        assert client.transport == frames
        client.close()


def test_sources_have_names_once_they_are_known(tmp_path):
    address = f"unix:{tmp_path}/s.sock"
    waiting = HostDrafts(HostSettings(server=address), VOCAB_SIZE)
    assert waiting.source_names == ()
    waiting.close()
    with server_thread(address, counting_engine()):
        drafts = HostDrafts(HostSettings(server=address, timeout_s=20.0), VOCAB_SIZE)
        assert drafts.source_names == ("half", "sure")
        drafts.close()


def test_a_server_that_is_found_late_is_looked_at_as_closely(monkeypatch, caplog):
    """One that drafts for another vocabulary is an error in the log then: the host has started."""
    answers = [
        ServiceUnavailable("starting"),
        ServiceUnavailable("starting"),
        TokenizerMismatch("another one"),
    ]

    class Starting:
        source_names = ("fake",)

        @property
        def vocab_size(self):
            raise answers.pop(0)

        def close(self):
            pass

    monkeypatch.setattr(source, "open_source", lambda settings, vocab_size: Starting())
    monkeypatch.setattr(source, "RETRY_S", 0.001)
    threads = []
    monkeypatch.setattr(
        source.threading,
        "Thread",
        lambda target, daemon: SimpleNamespace(start=lambda: threads.append(target)),
    )
    with caplog.at_level(logging.INFO, logger="retrieval_spec"):
        drafts = HostDrafts(HostSettings(server="unix:s"), VOCAB_SIZE)
        threads[0]()
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert caplog.messages[1] == "no drafts from unix:s: another one"
    assert (drafts.source_names, answers) == ((), [])


def test_a_tokenizer_that_is_not_on_this_machine_is_not_compared(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with caplog.at_level(logging.INFO, logger="retrieval_spec"):
        assert tokenizer_folder("someone/a-model") == "someone/a-model"
    assert "are not compared" in caplog.text


def test_a_loaded_tokenizer_has_the_fingerprint_of_its_file():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model_dir())
    from_file = fingerprint_of(demo_model_dir())
    assert from_file.startswith("sha256:")
    assert fingerprint_of(tokenizer) == from_file
    tokenizer.name_or_path = "/nowhere"
    assert fingerprint_of(tokenizer) == from_file, "of the tokenizer in memory"


def test_what_has_no_ids_of_its_own_is_not_compared_and_a_slow_tokenizer_is_refused():
    assert fingerprint_of(None) == ""
    assert fingerprint_of("/nowhere") == ""
    assert fingerprint_of(SimpleNamespace(name_or_path="/nowhere")) == ""
    slow = SimpleNamespace(name_or_path="", get_vocab=dict)
    with pytest.raises(InvalidRequest, match="not a fast tokenizer; got SimpleNamespace"):
        fingerprint_of(slow)
