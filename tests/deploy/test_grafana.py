"""The dashboard asks for nothing that the server does not count."""

import json
import re
from collections import Counter

import promql_parser
import pytest

from tests.conftest import ROOT

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "hfchat.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = {"__rate_interval": "5m", "__range": "1h", "instance": ".*"}  # the first two are Grafana's own


def selectors(expression):
    """The parts of an expression that name series, each with the labels by which they are grouped."""
    text = re.sub(r"\$(\w+)", lambda match: VARIABLES[match[1]], expression)

    def walk(node, grouped):
        if isinstance(node, promql_parser.VectorSelector):
            yield node, grouped
            return
        by = getattr(node, "modifier", None) if isinstance(node, promql_parser.AggregateExpr) else None
        grouped = {*grouped, *(by.labels if by else ())}
        children = (getattr(node, name, None) for name in ("expr", "lhs", "rhs", "vector_selector"))
        for child in (*children, *getattr(node, "args", ())):
            if child is not None:
                yield from walk(child, grouped)

    return list(walk(promql_parser.parse(text), set()))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_panel_asks_for_what_is_counted(expression, counted):
    found = selectors(expression)
    assert found
    for selector, grouped in found:
        assert selector.name in counted
        asked = {matcher.name for matcher in selector.matchers.matchers}
        assert asked | grouped <= counted[selector.name]
        assert "instance" in asked


def test_a_dashboard_has_what_one_looks_for():
    named = " ".join(EXPRESSIONS)
    for metric in (
        "hfchat_http_requests_total",
        "hfchat_time_to_first_token_seconds_bucket",
        "hfchat_completion_tokens_total",
        "hfchat_answers_waiting",
        "hfchat_feedback_total",
        "hfchat_refusals_total",
        "hfchat_guard_findings_total",
        "hfchat_engine_restarts_total",
    ):
        assert metric in named


def test_legends_name_labels_that_are_left():
    for panel in PANELS:
        for target in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert re.search(rf"by \([^)]*\b{label}\b", target["expr"]) or "sum" not in target["expr"]


def test_grafana_can_tell_the_panels_apart():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert max(cells.values()) == 1
    assert max(x for x, _ in cells) < 24


def test_the_data_source_is_a_variable():
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for panel in PANELS:
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert "instance" in variables
    assert DASHBOARD["schemaVersion"] >= 39  # Grafana 11
    assert DASHBOARD["uid"] == "hfchat"
