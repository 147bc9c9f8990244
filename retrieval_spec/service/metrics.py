"""The metrics that Prometheus finds: read from the server's own counts when it asks.

Names nobody's namespace, session, token or text. Needs the extra `metrics`, and only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import accumulate
from typing import Any, NamedTuple

import retrieval_spec
from retrieval_spec.engine import Engine
from retrieval_spec.errors import MissingDependency, ServiceUnavailable
from retrieval_spec.service.listen import split_address
from retrieval_spec.service.meter import BUCKETS_S, Meter
from retrieval_spec.service.pulse import Pulse
from retrieval_spec.service.servicer import Servicer

PREFIX = "retrieval_spec_"


class Sources(NamedTuple):
    """Where the numbers come from."""

    servicer: Servicer
    pulse: Pulse

    @property
    def engine(self) -> Engine:
        """Whose limits hold."""
        return self.servicer.engine

    @property
    def meter(self) -> Meter:
        """What was counted."""
        return self.servicer.meter


class Metric(NamedTuple):
    """A number, its kind and its meaning."""

    name: str
    kind: str
    meaning: str
    value: Callable[[Sources], float]


METRICS = (
    Metric("steps_total", "counter", "engine steps answered", lambda now: now.meter.steps),
    Metric("drafts_total", "counter", "draft trees with at least one node", lambda now: now.meter.drafts),
    Metric("drafted_nodes_total", "counter", "nodes of draft trees", lambda now: now.meter.drafted_nodes),
    Metric(
        "accepted_nodes_total",
        "counter",
        "tokens of the commit after a draft, but the last",
        lambda now: now.meter.accepted_nodes,
    ),
    Metric(
        "committed_tokens_total",
        "counter",
        "tokens appended to sessions",
        lambda now: now.meter.committed_tokens,
    ),
    Metric("sessions_opened_total", "counter", "sessions opened", lambda now: now.meter.sessions_opened),
    Metric(
        "sessions_dropped_total",
        "counter",
        "sessions ended because unused",
        lambda now: now.servicer.sessions.num_dropped,
    ),
    Metric("ahead_trees_total", "counter", "trees drafted ahead", lambda now: now.servicer.ahead.trees),
    Metric(
        "ahead_hits_total",
        "counter",
        "commits that had been drafted ahead for",
        lambda now: now.servicer.ahead.hits,
    ),
    Metric(
        "ahead_seconds_total",
        "counter",
        "time that drafting ahead took",
        lambda now: now.servicer.ahead.seconds,
    ),
    Metric("sessions", "gauge", "sessions open", lambda now: now.engine.num_sessions),
    Metric("session_bytes", "gauge", "memory of open sessions", lambda now: now.engine.ledger.num_bytes),
    Metric("session_limit_bytes", "gauge", "its limit", lambda now: now.engine.limits.max_session_bytes),
    Metric(
        "learned_bytes", "gauge", "memory of what sessions taught", lambda now: now.engine.memory.num_bytes
    ),
    Metric("learned_limit_bytes", "gauge", "its limit", lambda now: now.engine.limits.max_learned_bytes),
    Metric(
        "forgotten_namespaces_total",
        "counter",
        "namespaces forgotten for room",
        lambda now: now.engine.memory.num_forgotten,
    ),
    Metric("history_bytes", "gauge", "history on disk", lambda now: now.servicer.history_bytes),
    Metric(
        "history_lost_total",
        "counter",
        "sessions whose text could not be written",
        lambda now: now.servicer.num_history_lost,
    ),
    Metric("streams", "gauge", "streams open", lambda now: now.servicer.num_streams),
    Metric("ready", "gauge", "1 if sessions are answered", lambda now: now.pulse.is_serving),
    Metric("event_loop_lag_seconds", "gauge", "time since the event loop moved", lambda now: now.pulse.lag_s),
    Metric("event_loop_stalls_total", "counter", "times that it hung", lambda now: now.pulse.num_stalls),
)
"""Those of one number; beside them stand `step_seconds`, `errors_total` by `status`, `info` by `version`."""

HISTOGRAM = f"{PREFIX}step_seconds"
ERRORS = f"{PREFIX}errors_total"
INFO = f"{PREFIX}info"


class Collector:
    """What a registry of `prometheus_client` collects."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._families = _prometheus("prometheus_client.core")

    def collect(self) -> Iterator[Any]:
        """Yields every family."""
        families = self._families
        for metric in METRICS:
            is_counter = metric.kind == "counter"
            family = families.CounterMetricFamily if is_counter else families.GaugeMetricFamily
            yield family(PREFIX + metric.name, metric.meaning, value=float(metric.value(self._sources)))
        yield self._steps()
        errors = families.CounterMetricFamily(ERRORS, "failed calls and rows of steps", labels=["status"])
        for status, count in sorted(self._sources.meter.errors.items()):
            errors.add_metric([status], count)
        yield errors
        info = families.GaugeMetricFamily(INFO, "what serves", labels=["version"])
        info.add_metric([retrieval_spec.__version__], 1)
        yield info

    def _steps(self) -> Any:
        meter = self._sources.meter
        bounds = [*map(str, BUCKETS_S), "+Inf"]
        buckets = list(zip(bounds, accumulate(meter.step_counts), strict=True))
        return self._families.HistogramMetricFamily(
            HISTOGRAM, "time of a step in the server", buckets=buckets, sum_value=meter.step_seconds
        )


class MetricsListener:
    """Answers Prometheus over HTTP, from a thread of its own."""

    def __init__(self, sources: Sources, address: str) -> None:
        client = _prometheus("prometheus_client")
        registry = client.CollectorRegistry()
        registry.register(Collector(sources))
        host, port = split_address(address)
        try:
            self._server, self._thread = client.start_http_server(port, host, registry)
        except OSError as error:
            raise ServiceUnavailable(
                "cannot listen for Prometheus",
                got=f"{address} ({error.strerror})",
                remedy="choose another address",
            ) from error
        self.address = f"{host}:{self._server.server_port}"

    def stop(self) -> None:
        """Ends the thread."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _prometheus(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependency(
            "prometheus_client is not installed", remedy="pip install 'retrieval-spec[metrics]'"
        ) from error
