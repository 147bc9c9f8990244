"""How a server is set up, but for what it drafts from and its limits, which the engine holds."""

from __future__ import annotations

from dataclasses import dataclass

from retrieval_spec.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Who may connect and what is told of the server's state; None leaves a part out.

    Attributes:
        frames: `unix:PATH` of a socket where clients on this machine may ask without gRPC.
        insecure: whether to listen beyond this machine without TLS.
        tls_certificate: PEM file with the server's certificate chain; read again when it changes.
        tls_key: PEM file with its private key.
        tls_client_ca: PEM file; clients must show a certificate that it signed, and their name in it is their
            tenant.
        tokens: file of `TENANT TOKEN` lines; clients must show one of the tokens, and are its tenant.
        health_address: `host:port` of a listener for health checks alone, which answers when the rest hangs.
        metrics_address: `host:port` where Prometheus finds the metrics.
        traces: whether each call becomes an OpenTelemetry span.
        grace_s: how long a stopping server waits for calls under way.
        history: folder in which what sessions teach outlives the server.
        history_flush_s: what ended longer ago is on disk.
        history_max_bytes: of the folder; the oldest text goes.
        history_max_age_s: nothing older stays in the folder; None: nothing is too old.
        admin: `unix:PATH`, or loopback with `admin_tokens`: where an operator changes the datastores.
        admin_root: folder below which an operator may name others; None: none may be named.
        admin_tokens: file of `OPERATOR TOKEN` lines; who changes something must show one of the tokens.
        reload_datastores: whether new generations are taken up as they are written.
    """

    frames: str | None = None
    insecure: bool = False
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    tokens: str | None = None
    health_address: str | None = None
    metrics_address: str | None = None
    traces: bool = False
    grace_s: float = 2.0
    history: str | None = None
    history_flush_s: float = 5.0
    history_max_bytes: int = 1 << 30
    history_max_age_s: float | None = None
    admin: str | None = None
    admin_root: str | None = None
    admin_tokens: str | None = None
    reload_datastores: bool = False

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InvalidRequest("TLS needs two files", expected="tls_certificate and tls_key")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise InvalidRequest(
                "client certificates need TLS", remedy="set tls_certificate and tls_key beside tls_client_ca"
            )
        if self.frames is not None and self.tls_certificate is not None:
            raise InvalidRequest("frames travel without TLS", remedy="leave out frames, or the certificate")
        if self.admin is None and (self.admin_root or self.admin_tokens):
            raise InvalidRequest("nobody listens for changes", remedy="set admin beside admin_root")
        if not 0 <= self.grace_s <= 3_600:
            raise InvalidRequest("grace_s is out of range", got=self.grace_s, expected="0 to 3600")
        _expect("history_flush_s", self.history_flush_s, 0.1, 3_600)
        _expect("history_max_bytes", self.history_max_bytes, 1 << 20, 1 << 50)
        _expect(
            "history_max_age_s", 1.0 if self.history_max_age_s is None else self.history_max_age_s, 1, 1e10
        )


def _expect(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        raise InvalidRequest(f"{name} is out of range", got=value, expected=f"{lowest:g} to {highest:g}")


ON_THIS_MACHINE = ServerConfig()
"""Nobody is asked who they are, and nothing is told."""
