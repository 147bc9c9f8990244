"""OpenTelemetry spans, one a call; a stream is one call, so the steps on it cost nothing.

The usual library makes them. Where they go, the `OTEL_...` variables of the environment say, as everywhere.
Needs the extra `otel`, and only when it is asked for.
"""

from __future__ import annotations

from typing import Any

from retrieval_spec.errors import MissingDependency


def trace_interceptors() -> list[Any]:
    """Returns what a server takes to make spans of calls, health checks left out.

    Raises:
        MissingDependency: the extra is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.instrumentation.grpc import aio_server_interceptor, filters

        if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):  # nobody set one up
            trace.set_tracer_provider(_provider())
        return [aio_server_interceptor(filter_=filters.negate(filters.health_check()))]
    except ImportError as error:
        raise MissingDependency(
            "OpenTelemetry is not installed", remedy="pip install 'retrieval-spec[otel]'"
        ) from error


def _provider() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "retrieval-spec"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
