"""Who clients are: tokens, certificates and the tenants that follow from them, on real connections."""

from __future__ import annotations

import os
import time

import grpc
import numpy as np
import pytest

from retrieval_spec import wire
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest, MissingPath, Unauthenticated
from retrieval_spec.service.config import ServerConfig
from retrieval_spec.service.peers import CertificateHolders, TokenHolders, read_tokens
from retrieval_spec.service.tls import Certificates, credentials
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import DraftServiceStub
from tests.certificates import Authority
from tests.service_process import server_thread

VOCAB_SIZE = 1_000
A, B = "a" * 20, "b" * 20


def engine():
    return Engine(VOCAB_SIZE)


def tokens_file(tmp_path, text=f"# who\nacme {A}\n\nzeta {B}\n", mode=0o600):
    path = tmp_path / "tokens"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


class Call:
    def __init__(self, **metadata):
        self._metadata = tuple((key, value) for key, value in metadata.items())

    def invocation_metadata(self):
        return self._metadata

    def auth_context(self):
        return {key: list(names) for key, names in self._metadata}


def test_a_token_says_who_calls(tmp_path):
    holders = TokenHolders(tokens_file(tmp_path))
    assert holders.owner(Call(authorization=f"Bearer {A}")) == "acme"
    assert holders.owner(Call(authorization=f"bearer  {B} ")) == "zeta"
    for wrong in ("Bearer", f"Basic {A}", f"Bearer {A}x", "Bearer ", A, ""):
        with pytest.raises(Unauthenticated) as caught:
            holders.owner(Call(authorization=wrong))
        assert A not in str(caught.value)
    with pytest.raises(Unauthenticated, match="no token"):
        holders.owner(Call())


MISTAKES = {
    "too short": "acme short",
    "three words": f"acme {A} {B}",
    "one word": A,
    "a tenant with a slash": f"a/b {A}",
    "a tenant that climbs": f".. {A}",
    "twice": f"a {A}\nb {A}",
    "empty": "# nothing",
}


@pytest.mark.parametrize("text", MISTAKES.values(), ids=MISTAKES)
def test_malformed_files_of_tokens_are_refused_without_showing_them(text, tmp_path):
    with pytest.raises(InvalidRequest) as caught:
        read_tokens(tokens_file(tmp_path, text))
    assert A not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_tokens_that_others_may_read_are_refused(mode, tmp_path):
    with pytest.raises(InvalidRequest, match="chmod 600"):
        read_tokens(tokens_file(tmp_path, mode=mode))


def test_a_missing_file_of_tokens_is_named():
    with pytest.raises(MissingPath, match="tokens"):
        read_tokens("no/tokens")


def test_changed_tokens_are_taken_over_and_broken_ones_are_not(tmp_path):
    path = tokens_file(tmp_path)
    holders = TokenHolders(path)
    holders.refresh()
    assert holders.version == 0
    tokens_file(tmp_path, f"zeta {B}\n")
    holders.refresh()
    with pytest.raises(Unauthenticated):
        holders.owner(Call(authorization=f"Bearer {A}"))
    tokens_file(tmp_path, "broken")
    holders.refresh()
    assert (holders.owner(Call(authorization=f"Bearer {B}")), holders.version) == ("zeta", 1)
    tokens_file(tmp_path, f"acme {A}\n")
    holders.refresh()
    assert holders.owner(Call(authorization=f"Bearer {A}")) == "acme"


@pytest.mark.row("T1")
def test_names_in_certificates_become_tenants_that_never_meet():
    def owner(common=(), others=()):
        shown = {"x509_common_name": common, "x509_subject_alternative_name": others}
        return CertificateHolders().owner(Call(**shown))

    assert owner([b"acme"], [b"localhost"]) == "acme"
    assert owner([], [b"engine.acme.svc"]) == "engine.acme.svc"
    spiffe = owner([b"acme"], [b"host", b"spiffe://acme/engine"])
    assert spiffe.startswith("cert-")
    names = [b"a/b", b"a", b"a b", b"..", b"x" * 65, b"\xff", spiffe.encode()]
    found = {owner([name]) for name in names}
    assert len(found | {spiffe}) == len(names) + 1
    assert not any("/" in tenant for tenant in found)
    with pytest.raises(Unauthenticated):
        owner()


def stub_of(channel):
    return DraftServiceStub(channel)


def column(values):
    return np.array(values, "<i4").tobytes()


def as_tenant(token):
    return (("authorization", f"Bearer {token}"),)


def step_of(session_id, length, commit=()):
    step = pb.DraftStep()
    wire.write_step(step, [wire.SessionStep(session_id, length, np.array(commit, np.int32), 8)], 8)
    return pb.DraftRequest(step=step)


def refusal(call, *arguments, **options):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)
    return caught.value.code().name


@pytest.mark.row("T1")
def test_tenants_do_not_reach_each_other_over_tokens(tmp_path):
    config = ServerConfig(tokens=tokens_file(tmp_path))
    with (
        server_thread(f"unix:{tmp_path}/s.sock", engine(), config) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub = stub_of(channel)
        assert refusal(stub.OpenSession, pb.OpenSessionRequest()) == "UNAUTHENTICATED"
        assert refusal(stub.GetInfo, pb.GetInfoRequest()) == "UNAUTHENTICATED"
        assert refusal(next, stub.DraftStream(iter([]))) == "UNAUTHENTICATED"
        mine, other = as_tenant(A), as_tenant(B)
        text = column([5, 6, 7, 8, 9] * 4)
        opened = stub.OpenSession(pb.OpenSessionRequest(), metadata=mine).session_id
        result = stub.Draft(step_of(opened, 0), metadata=other).result
        assert result.errors[0].type == "UnknownSession"
        assert (
            refusal(stub.CloseSession, pb.CloseSessionRequest(session_id=opened), metadata=other)
            == "NOT_FOUND"
        )
        stub.OpenSession(pb.OpenSessionRequest(replaced_session_id=opened), metadata=other)
        close = pb.CloseSessionRequest(session_id=opened, commit_token_ids=text)
        stub.CloseSession(close, metadata=mine)
        for who, sees in ((mine, True), (other, False)):
            again = stub.OpenSession(pb.OpenSessionRequest(prompt_token_ids=column([5, 6])), metadata=who)
            drafted = np.frombuffer(
                stub.Draft(step_of(again.session_id, 2), metadata=who).result.token_ids, "<i4"
            )
            assert bool({7, 8, 9} & set(drafted.tolist())) == sees
        for name in ("acme/default", "../acme", "a/b"):
            request = pb.OpenSessionRequest(namespace=name)
            assert refusal(stub.OpenSession, request, metadata=other) == "INVALID_ARGUMENT"


def test_a_stream_ends_when_its_token_is_taken_back(tmp_path):
    path = tokens_file(tmp_path)
    with (
        server_thread(f"unix:{tmp_path}/s.sock", engine(), ServerConfig(tokens=path)) as address,
        grpc.insecure_channel(address) as channel,
    ):
        stub = stub_of(channel)

        def steps():
            yield pb.DraftStreamRequest()
            tokens_file(tmp_path, f"zeta {B}\n")
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                time.sleep(0.2)
                yield pb.DraftStreamRequest()

        answers = stub.DraftStream(steps(), metadata=as_tenant(A))
        next(answers)
        assert refusal(list, answers) == "UNAUTHENTICATED"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


def open_over_tls(address, authority, client=None):
    pair = [path.read_bytes() for path in reversed(client)] if client else [None, None]
    trusted = grpc.ssl_channel_credentials(authority.certificate.read_bytes(), *pair)
    with grpc.secure_channel(address, trusted) as channel:
        return stub_of(channel).OpenSession(pb.OpenSessionRequest(), timeout=10).session_id


def test_certificates_are_asked_for_and_replaced_without_a_restart(authority, tmp_path):
    certificate, key = authority.issue("server", "server", "DNS:localhost", "IP:127.0.0.1")
    client = authority.issue("client", "acme")
    stranger = Authority(tmp_path, "stranger")
    config = ServerConfig(
        tls_certificate=str(certificate), tls_key=str(key), tls_client_ca=str(authority.certificate)
    )
    served = engine()
    with server_thread("127.0.0.1:0", served, config) as address:
        port = address.rpartition(":")[2]
        assert open_over_tls(f"localhost:{port}", authority, client)
        assert list(served.ledger._of_tenants) == ["acme"]
        for wrong in (None, stranger.issue("client", "acme")):
            assert refusal(open_over_tls, f"localhost:{port}", authority, wrong) == "UNAVAILABLE"
        assert refusal(open_over_tls, f"localhost:{port}", stranger, client) == "UNAVAILABLE"
        os.truncate(key, 10)  # half-way replaced
        assert open_over_tls(f"localhost:{port}", authority, client)
        replaced = stranger.issue("server", "server", "DNS:localhost")
        replaced[0].replace(certificate)
        replaced[1].replace(key)
        assert open_over_tls(f"localhost:{port}", stranger, client)


def test_only_a_whole_new_pair_of_certificate_and_key_takes_the_place_of_the_old(authority, caplog):
    certificate, key = authority.issue("changing", "server", "IP:127.0.0.1")
    held = Certificates(str(certificate), str(key), str(authority.certificate))
    assert held.changed() is None
    old = certificate.read_bytes()
    fresh, fresh_key = authority.issue("next", "server", "IP:127.0.0.1")
    with caplog.at_level("INFO", logger="retrieval_spec"):
        fresh.replace(certificate)  # the key is the old one still
        assert held.changed() is None
        assert held.changed() is None, "asked again with every handshake"
        fresh_key.replace(key)
        assert isinstance(held.changed(), grpc.ServerCertificateConfiguration)
        assert held.changed() is None
        key.unlink()
        assert held.changed() is None
    assert certificate.read_bytes() != old
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert said == [*["the old certificates stay in use"] * 2, "new certificates are in use", said[0]]


def test_files_that_are_no_certificates_are_refused(authority, tmp_path):
    certificate, key = map(str, authority.issue("one", "one"))
    _, other_key = map(str, authority.issue("two", "two"))
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    assert credentials(ServerConfig()) is None
    assert credentials(ServerConfig(tls_certificate=certificate, tls_key=key)) is not None
    for pair in ((certificate, other_key), (str(garbage), key)):
        with pytest.raises(InvalidRequest, match="certificate"):
            credentials(ServerConfig(tls_certificate=pair[0], tls_key=pair[1]))
    with pytest.raises(InvalidRequest, match="certificate"):
        credentials(ServerConfig(tls_certificate=certificate, tls_key=key, tls_client_ca=str(garbage)))
    with pytest.raises(MissingPath, match="nowhere"):
        credentials(ServerConfig(tls_certificate="nowhere", tls_key=key))
