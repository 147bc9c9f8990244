"""The server's certificates, read again when their files change.

Knows files and gRPC credentials; nothing of tenants.
"""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path
from typing import Any

import grpc

from retrieval_spec.errors import InvalidRequest, MissingPath
from retrieval_spec.service.changes import FileChanges
from retrieval_spec.service.config import ServerConfig

logger = logging.getLogger(__name__)


def credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """Returns what a secure port is opened with; None without TLS.

    Raises:
        MissingPath, InvalidRequest: files that are not there, or no certificate with its key.
    """
    if config.tls_certificate is None or config.tls_key is None:
        return None
    files = Certificates(config.tls_certificate, config.tls_key, config.tls_client_ca)
    return grpc.dynamic_ssl_server_credentials(
        files.read(), files.changed, require_client_authentication=config.tls_client_ca is not None
    )


class Certificates:
    """Certificate, key and the authority of clients. Handshakes ask from threads of gRPC's own."""

    def __init__(self, certificate: str, key: str, client_ca: str | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._changes = FileChanges([name for name in (certificate, key, client_ca) if name is not None])
        self._lock = threading.Lock()

    def read(self) -> Any:
        """Returns what the files hold now.

        Raises:
            MissingPath, InvalidRequest: files that are not there, or no certificate with its key.
        """
        try:
            pair = (Path(self._key).read_bytes(), Path(self._certificate).read_bytes())
            roots = None if self._client_ca is None else Path(self._client_ca).read_bytes()
            # A pair that is half-way replaced fails here, and not in every handshake.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
            if self._client_ca is not None:
                ssl.create_default_context(cafile=self._client_ca)
        except ssl.SSLError as error:
            raise InvalidRequest(
                "no certificate with its key", got=error.reason or "no PEM", expected="PEM files that fit"
            ) from error
        except OSError as error:
            raise MissingPath("cannot read a TLS file", got=f"{error.filename}: {error.strerror}") from error
        return grpc.ssl_server_certificate_configuration([pair], roots)

    def changed(self) -> Any:
        """Returns the new certificates if files changed and fit each other; None keeps the old ones."""
        with self._lock:
            if not self._changes.seen():
                return None
            try:
                fresh = self.read()
            except (InvalidRequest, MissingPath) as error:
                logger.error("the old certificates stay in use: %s", error)
                self._changes.forget()
                return None
            logger.info("new certificates are in use")
            return fresh
