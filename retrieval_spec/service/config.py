"""How a server is set up, but for what it drafts from and its limits, which the engine holds."""

from __future__ import annotations

from dataclasses import dataclass

from retrieval_spec.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Who may connect and what is told of the server's state; None leaves a part out.

    Attributes:
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
    """

    insecure: bool = False
    tls_certificate: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    tokens: str | None = None
    health_address: str | None = None
    metrics_address: str | None = None
    traces: bool = False
    grace_s: float = 2.0

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InvalidRequest("TLS needs two files", expected="tls_certificate and tls_key")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise InvalidRequest(
                "client certificates need TLS", remedy="set tls_certificate and tls_key beside tls_client_ca"
            )
        if not 0 <= self.grace_s <= 3_600:
            raise InvalidRequest("grace_s is out of range", got=self.grace_s, expected="0 to 3600")


ON_THIS_MACHINE = ServerConfig()
"""Nobody is asked who they are, and nothing is told."""
