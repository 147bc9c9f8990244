"""Where a server listens: loopback TCP, or a unix socket that appears whole and goes away cleanly.

Knows sockets and paths; nothing of gRPC but the address that it binds.
"""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from retrieval_spec.errors import InvalidRequest, ServiceUnavailable
from retrieval_spec.service.config import ServerConfig

logger = logging.getLogger(__name__)

_UNIX = "unix:"
_MAX_PATH_BYTES = 90  # the system allows 107, and the name that is bound first is longer
_PROBE_TIMEOUT_S = 1.0
_LOOPBACK = ("localhost", "[::1]", "::1")

Bind = Callable[[str], int]
"""Binds a gRPC address and returns its port."""


class TcpListener:
    """A `host:port` address; port 0 takes a free one."""

    def __init__(self, listen: str) -> None:
        self._host, _ = split_address(listen)
        self._listen = listen
        self.address = listen

    @property
    def is_private(self) -> bool:
        """Whether nobody beyond this machine can connect."""
        return self._host.startswith("127.") or self._host in _LOOPBACK

    def bind(self, bind: Bind) -> None:
        """Takes the port.

        Raises:
            ServiceUnavailable: it is taken or not allowed.
        """
        try:
            self.address = f"{self._host}:{bind(self._listen)}"
        except RuntimeError as error:
            raise _cannot_listen(self._listen, error) from error

    def publish(self) -> None:
        """Does nothing: a bound port is visible."""

    def remove(self) -> None:
        """Does nothing: the port goes with the process."""


class UnixListener:
    """A `unix:/path` address whose socket only the own user may connect to.

    gRPC deletes the path it bound when it shuts down, even if a successor listens there by then. So it
    binds a name of its own, and the socket is moved to the path that clients know.
    """

    def __init__(self, listen: str) -> None:
        name = listen[len(_UNIX) :]
        self._path = Path("/" + name.lstrip("/") if name.startswith("//") else name).absolute()
        self._bound = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        if not name or len(os.fsencode(self._path)) > _MAX_PATH_BYTES:
            raise InvalidRequest(
                "no usable socket path",
                got=repr(listen),
                expected=f"unix:/path of at most {_MAX_PATH_BYTES} bytes",
            )
        self.address = f"{_UNIX}{self._path}"
        self._inode: int | None = None

    is_private = True

    def bind(self, bind: Bind) -> None:
        """Makes the socket, still under its own name.

        Raises:
            InvalidRequest: something that is no socket is in the way.
            ServiceUnavailable: a live server listens there, or the folder cannot be written.
        """
        self._refuse_taken_path()
        self._bound.unlink(missing_ok=True)
        try:
            bind(f"{_UNIX}{self._bound}")
            self._bound.chmod(0o600)
        except (RuntimeError, OSError) as error:
            raise _cannot_listen(self.address, error) from error

    def publish(self) -> None:
        """Puts the socket where clients look for it, in place of one that a dead server left."""
        self._inode = self._bound.stat().st_ino
        self._bound.replace(self._path)

    def remove(self) -> None:
        """Deletes the socket unless another server's has taken its place."""
        self._bound.unlink(missing_ok=True)
        try:
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            pass

    def _refuse_taken_path(self) -> None:
        if not os.path.lexists(self._path):
            return
        if not stat.S_ISSOCK(self._path.lstat().st_mode):
            raise InvalidRequest(
                "something that is no socket is in the way", got=self._path, remedy="choose another path"
            )
        if _somebody_answers(self._path):
            raise ServiceUnavailable(
                "a server listens there already", got=self.address, remedy="stop it or choose another path"
            )


def split_address(address: str) -> tuple[str, int]:
    """Returns host and port.

    Raises:
        InvalidRequest: no `host:port`.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise InvalidRequest(
            "malformed listen address", got=repr(address), expected="unix:/path or 127.0.0.1:port"
        )
    return host, int(port)


def expect_safe(place: TcpListener | UnixListener, config: ServerConfig) -> None:
    """Refuses to let other machines in without TLS.

    Raises:
        InvalidRequest: other machines could read and send whatever they like, and nobody allowed it.
    """
    if not (place.is_private or config.tls_certificate or config.insecure):
        raise InvalidRequest(
            "other machines could connect without TLS",
            got=place.address,
            expected="unix:/path or 127.0.0.1:port",
            remedy="give a certificate and its key, or --insecure if the network itself is trusted",
        )


def warn_if_open(place: TcpListener | UnixListener, config: ServerConfig) -> None:
    """Says so where other machines can connect and nobody is asked who they are."""
    if not (place.is_private or config.tokens or config.tls_client_ca):
        logger.warning(
            "%s can be reached from other machines, and nobody is asked who they are", place.address
        )


def listener(listen: str) -> TcpListener | UnixListener:
    """Returns what listens at an address such as `unix:/run/drafts.sock` or `127.0.0.1:50051`.

    Raises:
        InvalidRequest: neither a unix path nor host and port.
    """
    return UnixListener(listen) if listen.startswith(_UNIX) else TcpListener(listen)


def _somebody_answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # alive but busy, or another user's: not ours to replace
    return True


def _cannot_listen(address: str, error: Exception) -> ServiceUnavailable:
    return ServiceUnavailable(
        "cannot listen", got=f"{address} ({error})", remedy="choose another port or path, or free this one"
    )
