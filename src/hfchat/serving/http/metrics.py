"""What Prometheus can ask of the server (https://prometheus.io/docs/practices/naming/).

No label has a value that a client chooses, so the number of series is bounded.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from hfchat.safety.guards import Finding
from hfchat.safety.refusals import is_refusal
from hfchat.serving.engines.engine import Engine
from hfchat.serving.engines.gateway import Gateway
from hfchat.serving.http.limits import Slots
from hfchat.serving.http.record import RequestRecord

CONTENT_TYPE = CONTENT_TYPE_LATEST

_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "WEBSOCKET"})
# From a cached prompt on a GPU to a long one on a laptop, and from 1 ms to 5 s for a token.
_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_REQUEST_S = (0.005, 0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one application, in a registry of its own.

    Args:
        slots: The places for answers.
        in_flight: How many requests are being answered.
        engines: Those that run now.
    """

    def __init__(
        self,
        slots: Slots,
        in_flight: Callable[[], int],
        engines: Callable[[], Iterable[Engine]],
    ):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        self._requests = counter("hfchat_http_requests", "Requests that are over.", ["method", "route", "status"])
        self._seconds = histogram(
            "hfchat_http_request_duration_seconds",
            "From a request to the end of its answer.",
            ["route"],
            buckets=_REQUEST_S,
        )
        self._first_token = histogram(
            "hfchat_time_to_first_token_seconds",
            "From a request to the first token of each answer, the time in the queue included.",
            buckets=_FIRST_TOKEN_S,
        )
        self._token = histogram(
            "hfchat_time_per_output_token_seconds",
            "Mean time from a token to the next one, of each answer.",
            buckets=_TOKEN_S,
        )
        # The work itself, by the version of the model that did it.
        self._prompt_tokens = counter("hfchat_prompt_tokens", "Tokens of prompts.")
        self._completion_tokens = counter("hfchat_completion_tokens", "Tokens generated.")
        self._answers = counter("hfchat_answers", "Answers that are over.", ["finish_reason", "version"])
        self._findings = counter("hfchat_guard_findings", "What guards found.", ["guard", "action", "place"])
        self._refusals = counter("hfchat_refusals", "Answers that begin as English refusals do.", ["version"])
        self._feedback = counter("hfchat_feedback", "Ratings by users.", ["rating", "version"])
        # What others count is read when it is asked for.
        gauges = {
            "hfchat_http_requests_in_flight": ("Requests that are being answered.", in_flight),
            "hfchat_answers_running": ("Answers that are being generated.", lambda: slots.running),
            "hfchat_answers_waiting": ("Answers that wait for a place.", lambda: slots.waiting),
        }
        for name, (documentation, value) in gauges.items():
            Gauge(name, documentation, registry=registry).set_function(value)
        registry.register(_Engines(engines))
        registry.register(_Upstreams(engines))

    def request(self, record: RequestRecord) -> None:
        """Count a request that is over."""
        method = record.method if record.method in _METHODS else "other"
        route = record.route or "none"
        self._requests.labels(method, route, record.status).inc()
        self._seconds.labels(route).observe(record.seconds)
        self._prompt_tokens.inc(record.prompt_tokens)
        for answer in record.answers:
            version = record.version or "none"
            self._answers.labels(answer.finish_reason or "none", version).inc()
            refused = answer.finish_reason != "content_filter" and is_refusal(answer.text)
            self._refusals.labels(version).inc(refused)
            self._completion_tokens.inc(answer.tokens)
            if answer.first_token is not None:
                self._first_token.observe(answer.first_token - record.started)
            if answer.seconds_per_token is not None:
                self._token.observe(answer.seconds_per_token)

    def finding(self, finding: Finding) -> None:
        """Count what a guard found."""
        self._findings.labels(finding.guard, finding.action, finding.place).inc()

    def feedback(self, rating: str, version: str | None) -> None:
        """Count a rating, one of a few words, of an answer by a version of the model."""
        self._feedback.labels(rating, version or "none").inc()

    def text(self) -> bytes:
        """All of them in Prometheus's text format, `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _Engines:
    """Reads what engines there are, and their own counts, at every scrape."""

    def __init__(self, engines: Callable[[], Iterable[Engine]]):
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        engines = list(self._engines())
        restarts = sum(engine.restarts for engine in engines)
        yield CounterMetricFamily("hfchat_engine_restarts", "Starts of the engine after a crash.", value=restarts)
        kinds = InfoMetricFamily("hfchat_engine", "What generates the answers.", labels=[])
        for engine, weights in sorted({(engine.info.engine, engine.info.weights or "") for engine in engines}):
            kinds.add_metric([], {"engine": engine, "weights": weights})
        yield kinds


class _Upstreams:
    """What gateways know of their upstreams, at every scrape; nothing where the model is on this machine."""

    def __init__(self, engines: Callable[[], Iterable[Engine]]):
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        gateways = [engine for engine in self._engines() if isinstance(engine, Gateway)]
        if not gateways:
            return
        up = GaugeMetricFamily("hfchat_upstream_up", "Whether it gets requests.", labels=["upstream"])
        in_flight = GaugeMetricFamily("hfchat_upstream_in_flight", "Answers it is at.", labels=["upstream"])
        failures = CounterMetricFamily("hfchat_upstream_failures", "Of answers and of checks.", labels=["upstream"])
        for watched in chain.from_iterable(gateway.upstreams for gateway in gateways):
            labels = [watched.upstream.url]
            up.add_metric(labels, not watched.down)
            in_flight.add_metric(labels, watched.in_flight)
            failures.add_metric(labels, watched.failures)
        retries = sum(gateway.retries for gateway in gateways)
        yield from (up, in_flight, failures)
        yield CounterMetricFamily("hfchat_upstream_retries", "Times another one was asked.", value=retries)
