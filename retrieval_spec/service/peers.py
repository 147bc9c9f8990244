"""Who a client is: nobody asks, a bearer token says it, or a certificate does.

The answer is the owner of sessions and the tenant before the `/` of every namespace, so that no client can
name its way into another's. Knows calls' metadata; nothing of sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
from pathlib import Path
from typing import Any, Protocol

from retrieval_spec.errors import InvalidRequest, MissingPath, Unauthenticated
from retrieval_spec.service.changes import FileChanges
from retrieval_spec.service.config import ServerConfig

logger = logging.getLogger(__name__)

ANYBODY = ""
"""The owner of all sessions, where nobody is asked who they are."""

MIN_TOKEN_CHARACTERS = 16
MAX_TOKENS = 1_000
_TENANT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_HASHED = "cert-"
_SCHEME = "bearer "


class Peers(Protocol):
    """Tells callers apart.

    Attributes:
        version: changes whenever an earlier answer may be wrong.
    """

    version: int

    def owner(self, context: Any) -> str:
        """Returns the tenant that calls.

        Raises:
            Unauthenticated: it does not say who it is, or nobody knows it.
        """
        ...

    def refresh(self) -> None:
        """Looks whether files changed."""
        ...


class Anyone:
    """Asks nobody."""

    version = 0

    def owner(self, context: Any) -> str:
        """Returns `ANYBODY`."""
        return ANYBODY

    def refresh(self) -> None:
        """Does nothing."""


class CertificateHolders:
    """Takes the name in the certificate that the client showed and that TLS has checked already."""

    version = 0

    def owner(self, context: Any) -> str:
        """Returns the tenant of the certificate: its first URI, its common name or its first other name."""
        shown = context.auth_context()
        others = [name.decode("utf-8", "replace") for name in shown.get("x509_subject_alternative_name", ())]
        common = [name.decode("utf-8", "replace") for name in shown.get("x509_common_name", ())]
        names = [name for name in others if "://" in name] + common + others
        if not names:
            raise Unauthenticated("the client certificate names nobody", expected="a common name")
        return _tenant_of_name(names[0])

    def refresh(self) -> None:
        """Does nothing: TLS looks after its files."""


class TokenHolders:
    """Knows clients by bearer tokens, `TENANT TOKEN` on each line of a file that only the server may read."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._changes = FileChanges([path])
        self._tenants = read_tokens(path)
        self.version = 0

    def owner(self, context: Any) -> str:
        """Returns the tenant whose token the call carries."""
        for key, value in context.invocation_metadata() or ():
            if key == "authorization" and isinstance(value, str) and value[:7].lower() == _SCHEME:
                return self._tenant(value[7:].strip())
        raise Unauthenticated("no token", expected="metadata `authorization: Bearer TOKEN`")

    def refresh(self) -> None:
        """Reads the file again if it changed; one that cannot be used leaves the old tokens valid."""
        if not self._changes.seen():
            return
        try:
            self._tenants = read_tokens(self._path)
        except (InvalidRequest, MissingPath) as error:
            self._changes.forget()
            logger.error("the old tokens stay valid: %s", error)
            return
        self.version += 1
        logger.info("%d tokens are valid now", len(self._tenants))

    def _tenant(self, token: str) -> str:
        shown = _digest(token)
        found = ""
        for digest, tenant in self._tenants:  # all of them, so that the time says nothing
            if hmac.compare_digest(digest, shown):
                found = tenant
        if not found:
            raise Unauthenticated("unknown token", remedy="ask the server's operator for a valid one")
        return found


def peers(config: ServerConfig) -> Peers:
    """Returns who a server's clients are; a token goes before a certificate.

    Raises:
        MissingPath, InvalidRequest: no file of tokens.
    """
    if config.tokens is not None:
        return TokenHolders(config.tokens)
    return CertificateHolders() if config.tls_client_ca is not None else Anyone()


def read_tokens(path: str) -> list[tuple[bytes, str]]:
    """Returns digest and tenant of every token; empty lines and those that begin with # mean nothing.

    Raises:
        MissingPath: there is no such file, or it may not be read.
        InvalidRequest: others may read it, or a line is malformed. Says which line, not what stands there.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            _expect_private(path, os.fstat(file.fileno()))
            lines = file.read().splitlines()
    except (OSError, ValueError) as error:
        raise MissingPath("cannot read the file of tokens", got=path) from error
    found = [
        _entry(path, number, line.split())
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not 1 <= len(found) <= MAX_TOKENS:
        raise InvalidRequest(f"{path}: wrong number of tokens", got=len(found), expected=f"1 to {MAX_TOKENS}")
    if len({digest for digest, _ in found}) < len(found):
        raise InvalidRequest(f"{path}: one token stands there twice", remedy="give each tenant its own")
    return found


def _entry(path: str, number: int, words: list[str]) -> tuple[bytes, str]:
    if len(words) != 2 or not _TENANT.fullmatch(words[0]) or len(words[1]) < MIN_TOKEN_CHARACTERS:
        raise InvalidRequest(
            f"{path}: line {number} is malformed",
            expected=f"TENANT TOKEN; a tenant is 1 to 64 of A-Z a-z 0-9 _ . -, a token at least "
            f"{MIN_TOKEN_CHARACTERS} characters",
        )
    return _digest(words[1]), words[0]


def _expect_private(path: str, status: os.stat_result) -> None:
    mode = stat.S_IMODE(status.st_mode)
    # A mounted secret belongs to root, and the server may read it as one of its group.
    allowed = 0o700 if status.st_uid == os.geteuid() else 0o740
    if mode & ~allowed:
        raise InvalidRequest(
            f"others may read {path}", got=f"mode {mode:04o}", expected="0600", remedy=f"chmod 600 {path}"
        )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _tenant_of_name(name: str) -> str:
    if _TENANT.fullmatch(name) and not name.startswith(_HASHED):
        return name
    return _HASHED + hashlib.sha256(name.encode()).hexdigest()[:40]
