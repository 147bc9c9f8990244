"""How `generate` shows a server who it is."""

from __future__ import annotations

import pytest

from retrieval_spec.commands.arguments import new_parser
from retrieval_spec.commands.connecting import credentials_of
from retrieval_spec.commands.demo import demo_model_dir
from retrieval_spec.commands.generate import check_generation_options, open_server
from retrieval_spec.errors import InvalidRequest, MissingPath, RetrievalSpecError, Unauthenticated
from retrieval_spec.service.config import ServerConfig
from tests.certificates import Authority
from tests.service_process import counting_engine, server_thread

TOKEN = "a-token-of-some-length"


def parsed(*flags):
    return new_parser().parse_args(["generate", "--model", "m", "--prompt", "p", *map(str, flags)])


def test_without_flags_nothing_is_shown():
    credentials = credentials_of(parsed("--server", "unix:x"))
    assert credentials.metadata == ()
    assert credentials.ca_file is None


def test_the_token_comes_from_its_file(tmp_path):
    (tmp_path / "token").write_text(f"\n {TOKEN}\n")
    credentials = credentials_of(parsed("--server", "x", "--token-file", tmp_path / "token"))
    assert credentials.metadata == (("authorization", f"Bearer {TOKEN}"),)


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, MissingPath), (b"", InvalidRequest), (b" \n", InvalidRequest), (b"\xff", MissingPath)],
)
def test_files_without_a_token_are_refused(tmp_path, content, error):
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(error, match="token"):
        credentials_of(parsed("--server", "x", "--token-file", tmp_path / "token"))


@pytest.mark.parametrize(
    "flag", ["--tls-ca", "--tls-certificate", "--tls-key", "--tls-server-name", "--token-file"]
)
def test_credentials_without_a_server_are_refused(flag):
    with pytest.raises(InvalidRequest, match=flag):
        check_generation_options(parsed(flag, "x"))


def test_parts_that_belong_together_must_come_together():
    with pytest.raises(InvalidRequest, match="key"):
        credentials_of(parsed("--server", "x", "--tls-ca", "a", "--tls-certificate", "b"))
    with pytest.raises(InvalidRequest, match="ca_file"):
        credentials_of(parsed("--server", "x", "--tls-server-name", "b"))


def test_a_server_that_asks_for_all_of_it_is_reached_with_all_of_it(tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", "drafts", "DNS:drafts.example")
    own, own_key = authority.issue("client", "acme")
    (tmp_path / "tokens").write_text(f"acme {TOKEN}\n")
    (tmp_path / "tokens").chmod(0o600)
    (tmp_path / "token").write_text(TOKEN)
    config = ServerConfig(
        tls_certificate=str(certificate),
        tls_key=str(key),
        tls_client_ca=str(authority.certificate),
        tokens=str(tmp_path / "tokens"),
    )
    name = ("--tls-ca", authority.certificate, "--tls-server-name", "drafts.example")
    pair = ("--tls-certificate", own, "--tls-key", own_key)
    with server_thread("127.0.0.1:0", counting_engine(), config) as address:

        def reach(*flags):
            credentials = credentials_of(parsed("--server", address, *flags))
            with open_server(address, demo_model_dir(), credentials) as client:
                return client.vocab_size

        assert reach(*name, *pair, "--token-file", tmp_path / "token") == counting_engine().vocab_size
        with pytest.raises(Unauthenticated):
            reach(*name, *pair)
        with pytest.raises(RetrievalSpecError):
            reach(*name, "--token-file", tmp_path / "token")
