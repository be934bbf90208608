"""What the ways to deploy are checked against: the real metrics, and the real parser of `hfchat`."""

import argparse
from collections.abc import Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hfchat.cli import _parser, serve_parser
from hfchat.safety.guards import Finding
from hfchat.serving.engines.gateway import Gateway
from hfchat.serving.engines.upstream import Upstream
from hfchat.serving.http.limits import Slots
from hfchat.serving.http.metrics import Metrics
from hfchat.serving.http.record import AnswerRecord, RequestRecord
from hfchat.serving.settings import ServerSettings


@pytest.fixture(scope="session")
def counted():
    """Each series that a server has once something of everything happened, with its labels."""
    gateway = Gateway([Upstream("http://127.0.0.1:9/v1", "model")])
    metrics = Metrics(Slots(1, 1), in_flight=lambda: 0, engines=lambda: [gateway])
    metrics.request(RequestRecord(method="POST", route="/v1/chat/completions", answers=[AnswerRecord()]))
    metrics.finding(Finding("words", "answer", "redact", ("obscene",)))
    metrics.feedback("up", None)
    families = text_string_to_metric_families(metrics.text().decode())
    return {sample.name: {*sample.labels, "instance"} for family in families for sample in family.samples}


def taken(arguments: Sequence[str]) -> argparse.Namespace:
    """What `hfchat` makes of its arguments; all of them must be known to it."""
    args, args.other_arguments = _parser().parse_known_args(list(arguments))
    if hasattr(args, "takes_other_arguments"):
        serve_parser().fill(args.other_arguments)
    else:
        assert not args.other_arguments
    return args


@pytest.fixture
def settings_of(monkeypatch):
    """Returns the settings with which `hfchat serve ARGUMENTS` would run."""

    def run(arguments: Sequence[str]) -> ServerSettings:
        served = []
        monkeypatch.setattr("hfchat.serving.server.serve", served.append)
        args = taken(arguments)
        args.handler(args)
        (settings,) = served
        return settings

    return run
