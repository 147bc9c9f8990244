"""TLS and tokens, against a real gRPC server that wants them."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from retrieval_spec.client import Credentials, DraftClient
from retrieval_spec.errors import InvalidRequest, MissingPath, RetrievalSpecError
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import DraftServiceServicer, add_DraftServiceServicer_to_server

TOKEN = "s3cret"


class Guarded(DraftServiceServicer):
    """Serves those who know the token."""

    def GetInfo(self, request, context):
        self.check(context)
        return pb.GetInfoResponse(info=pb.ServerInfo(incarnation=1, vocab_size=100))

    def OpenSession(self, request, context):
        self.check(context)
        info = pb.ServerInfo(incarnation=1, vocab_size=100)
        return pb.OpenSessionResponse(session_id=1, info=info)

    def DraftStream(self, requests, context):
        self.check(context)
        for request in requests:
            result = pb.DraftStepResult(step_number=request.step.step_number, incarnation=1)
            yield pb.DraftStreamResponse(result=result)

    def Draft(self, request, context):
        self.check(context)
        result = pb.DraftStepResult(step_number=request.step.step_number, incarnation=1)
        return pb.DraftResponse(result=result)

    def check(self, context):
        if ("authorization", f"Bearer {TOKEN}") not in tuple(context.invocation_metadata()):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you")


@pytest.fixture
def serve():
    """Starts a server, with TLS if it gets credentials, and returns its port."""
    servers = []

    def start(credentials=None):
        server = grpc.server(ThreadPoolExecutor(4))
        add_DraftServiceServicer_to_server(Guarded(), server)
        add = server.add_insecure_port if credentials is None else server.add_secure_port
        port = add("127.0.0.1:0", *([] if credentials is None else [credentials]))
        server.start()
        servers.append(server)
        return port

    yield start
    for server in servers:
        server.stop(None)


@pytest.mark.parametrize("transport", ["stream", "unary"])
def test_the_token_travels_with_every_call(serve, transport):
    address = f"127.0.0.1:{serve()}"
    with DraftClient(
        address, timeout_s=5.0, transport=transport, credentials=Credentials(token=TOKEN)
    ) as client:
        client.open_session([1])
        assert client.ping() > 0
    for wrong in (None, Credentials(), Credentials(token="other")):
        with (
            DraftClient(address, credentials=wrong) as client,
            pytest.raises(RetrievalSpecError, match="who are you"),
        ):
            client.open_session([1])


def openssl(folder, *arguments):
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """A folder with an authority, and a server's and a client's certificate of it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(
        folder,
        "req",
        "-x509",
        *curve,
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=ca",
        "-days",
        "30",
    )
    (folder / "names").write_text("subjectAltName=DNS:drafts.test")
    for name in ("server", "client"):
        openssl(
            folder, "req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "names"]
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return folder


def test_both_sides_show_certificates(serve, certificates):
    pair = [((certificates / "server.key").read_bytes(), (certificates / "server.pem").read_bytes())]
    authority = (certificates / "ca.pem").read_bytes()
    address = f"127.0.0.1:{serve(grpc.ssl_server_credentials(pair, authority, require_client_auth=True))}"
    known = {"ca_file": certificates / "ca.pem", "server_name": "drafts.test", "token": TOKEN}
    own = {"cert_file": certificates / "client.pem", "key_file": certificates / "client.key"}
    with DraftClient(address, timeout_s=5.0, credentials=Credentials(**known, **own)) as client:
        client.open_session([1])
        assert client.ping() > 0
    for less in (Credentials(**known), Credentials(token=TOKEN)):
        with DraftClient(address, credentials=less) as client, pytest.raises(RetrievalSpecError):
            client.open_session([1])


@pytest.mark.parametrize(
    "options",
    [
        {"ca_file": "a", "cert_file": "b"},
        {"ca_file": "a", "key_file": "b"},
        {"cert_file": "a", "key_file": "b"},
        {"server_name": "a"},
        {"token": ""},
        {"token": "two words"},
        {"token": "a\nb"},
        {"token": "ü"},
    ],
    ids=repr,
)
def test_half_credentials_are_refused(options):
    with pytest.raises(InvalidRequest):
        Credentials(**options)


def test_a_missing_file_is_named_and_a_token_is_not_shown(tmp_path):
    with pytest.raises(MissingPath, match="nowhere"):
        DraftClient("127.0.0.1:1", credentials=Credentials(ca_file=tmp_path / "nowhere.pem"))
    assert TOKEN not in repr(Credentials(token=TOKEN))
