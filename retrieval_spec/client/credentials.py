"""How a client shows who it is, and makes sure of the server: TLS files and a bearer token."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from retrieval_spec.errors import InvalidRequest, MissingPath

TOKEN_KEY = "authorization"
"""The metadata of every call that carries `Bearer` and the token."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a server may ask of its clients; without any of it the connection is plain.

        DraftClient("drafts.example:50051", credentials=Credentials(ca_file="ca.pem", token="..."))

    Attributes:
        ca_file: certificates (PEM) that the server's own is checked against; without it, no TLS.
        cert_file: the client's certificate chain (PEM), where the server asks for one.
        key_file: its private key (PEM).
        token: travels with every call; without TLS, whoever sees the traffic can read it.
        server_name: the name in the server's certificate, where it is not that of the address.

    Raises:
        InvalidRequest: half of a pair, parts of TLS without `ca_file`, or a token that no header can carry.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None
    token: str | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert_file is None) != (self.key_file is None):
            raise InvalidRequest("a client certificate needs its key", expected="cert_file and key_file")
        if self.ca_file is None and (self.cert_file is not None or self.server_name is not None):
            raise InvalidRequest("TLS needs to know whom to trust", remedy="give ca_file")
        if self.token is not None and not _fits_a_header(self.token):
            raise InvalidRequest("a token of other than visible ASCII characters", remedy="check its file")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What travels with every call."""
        return () if self.token is None else ((TOKEN_KEY, f"Bearer {self.token}"),)

    def open_channel(self, address: str, options: tuple[tuple[str, Any], ...]) -> grpc.Channel:
        """Returns a channel; nothing is sent yet.

        Raises:
            MissingPath: a file cannot be read.
        """
        if self.ca_file is None:
            return grpc.insecure_channel(address, options=options)
        if self.server_name is not None:
            options = (*options, ("grpc.ssl_target_name_override", self.server_name))
        files = [_read(path) for path in (self.ca_file, self.key_file, self.cert_file)]
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(*files), options=options)


def _fits_a_header(token: str) -> bool:
    return bool(token) and token.isascii() and token.isprintable() and " " not in token


def _read(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise MissingPath("cannot read a credential", got=path, remedy=str(error.strerror)) from error
