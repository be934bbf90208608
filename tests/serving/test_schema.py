"""The server keeps what its OpenAPI description promises: schemathesis makes requests from it, good and bad ones."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.serving.conftest import MODEL, ScriptedEngine, running

_GENERATING = [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/responses")]
# A request that the schema allows may still be refused: two fields exclude each other, or it is too long.
_NOT_PROMISED = ("positive_data_acceptance",)
_OPERATIONS = (
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/feedback"),
    ("GET", "/v1/feedback/settings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model_id}"),
    ("GET", "/v1/models/{model_id}/card"),
    ("GET", "/health"),
    ("GET", "/ready"),
)


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    load_all_checks()
    feedback = str(tmp_path_factory.mktemp("feedback") / "feedback.db")
    with running(ScriptedEngine(context_length=10_000), feedback=feedback) as served:
        yield schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def test_every_operation_is_tested(schema):
    described = {(result.ok().method.upper(), result.ok().path) for result in schema.get_all_operations()}
    assert described == set(_OPERATIONS)


def check_answers(operation, mode, change=lambda body: None):
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=40,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        change(case.body)
        case.call_and_validate(excluded_checks=CHECKS.get_by_names(_NOT_PROMISED))

    check()


@pytest.mark.parametrize(("method", "path"), [each for each in _OPERATIONS if each not in _GENERATING])
def test_answers_are_as_described(schema, method, path):
    check_answers(schema[path][method], GenerationMode.POSITIVE)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("method", "path"), _GENERATING)
def test_generated_answers_are_as_described(schema, method, path, stream):
    check_answers(schema[path][method], GenerationMode.POSITIVE, lambda body: body.update(model=MODEL, stream=stream))


@pytest.mark.parametrize(("method", "path"), [operation for operation in _OPERATIONS if operation[0] == "POST"])
def test_what_is_not_as_described_is_refused(schema, method, path):
    check_answers(schema[path][method], GenerationMode.NEGATIVE)
