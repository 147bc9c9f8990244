"""How a command shows a draft server who it is: the flags, and the credentials that they make."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from retrieval_spec.errors import InvalidRequest, MissingPath

if TYPE_CHECKING:  # needs grpc, which a parser must not wait for
    from retrieval_spec.client import Credentials

_FLAGS = {
    "tls_ca": ("FILE", "TLS: certificates (PEM) that the server's own is checked against"),
    "tls_certificate": ("FILE", "the client's certificate chain (PEM), where the server asks for one"),
    "tls_key": ("FILE", "its private key"),
    "tls_server_name": ("NAME", "the name in the server's certificate, where it is not that of the address"),
    "token_file": ("FILE", "holds the token, where the server asks for one"),
}
_MAX_TOKEN_BYTES = 4_096


def add_credentials(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    group = parser.add_argument_group("with --server")
    for name, (value, meaning) in _FLAGS.items():
        group.add_argument(f"--{name.replace('_', '-')}", metavar=value, help=meaning)


def expect_server(arguments: argparse.Namespace) -> None:
    """Refuses credentials without a server to show them to.

    Raises:
        InvalidRequest: there are some.
    """
    for name in _FLAGS:
        if getattr(arguments, name) is not None and not arguments.server:
            raise InvalidRequest(f"--{name.replace('_', '-')} is for a server", remedy="give --server")


def credentials_of(arguments: argparse.Namespace) -> Credentials:
    """Returns what the flags name; a token is read from its file, as anybody can see a command's arguments.

    Raises:
        MissingPath: the file of the token cannot be read.
        InvalidRequest: parts that belong together are missing, or there is no token in the file.
    """
    from retrieval_spec.client import Credentials

    return Credentials(
        ca_file=arguments.tls_ca,
        cert_file=arguments.tls_certificate,
        key_file=arguments.tls_key,
        token=None if arguments.token_file is None else read_token(arguments.token_file),
        server_name=arguments.tls_server_name,
    )


def read_token(path: str) -> str:
    """Returns the token that a file holds, without what stands around it.

    Raises:
        MissingPath: it cannot be read.
        InvalidRequest: there is no token in it.
    """
    try:
        with open(path, encoding="ascii") as file:
            token = file.read(_MAX_TOKEN_BYTES).strip()
    except (OSError, ValueError) as error:
        raise MissingPath("cannot read the file of the token", got=path) from error
    if not token:
        raise InvalidRequest("no token in its file", got=path)
    return token
