"""The options of `hfchat serve`: from the command line, from a YAML file, and as the guide shows them."""

import re

import pytest
import yaml

from hfchat.cli import serve_parser
from hfchat.errors import UserError
from hfchat.serving.settings import ServerSettings
from tests.conftest import ROOT


def settings_of(*arguments):
    return serve_parser().fill([*map(str, arguments)])[0]


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "serve.yaml"
        path.write_text(text)
        return path

    return write


def test_every_option_can_be_a_key_of_a_file(config):
    path = config("model: org/model\nport: 8123\nallow_origins: ['https://a.example']\ngraphql: true\nguards: default")
    settings = settings_of("--config", path)
    assert (settings.model, settings.port, settings.graphql, settings.guards) == ("org/model", 8123, True, "default")
    assert settings.allow_origins == ["https://a.example"]
    assert settings.max_wait_seconds == 60


def test_the_command_line_wins(config):
    path = config(
        "model: org/model\nport: 8123\nallow_origins: ['https://a.example']\ngraphql: true\nmetrics_keys: [a]"
    )
    options = ["--port", "9000", "--allow-origin", "https://b.example", "--allow-origins", "https://c.example"]
    settings = settings_of("mine", "--config", path, *options, "--no-graphql")
    assert (settings.model, settings.port, settings.graphql) == ("mine", 9000, False)
    assert settings.allow_origins == ["https://b.example", "https://c.example"]
    assert settings.metrics_keys == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("allow_origin: [https://a.example]", "serve.yaml: unknown key 'allow_origin'; did you mean 'allow_origins'?"),
        ("max_wait_second: 5", "serve.yaml: unknown key 'max_wait_second'; did you mean 'max_wait_seconds'?"),
        ("allow_origins: https://a.example", "serve.yaml: key 'allow_origins': must be a list"),
        ("graphql: perhaps", "serve.yaml: key 'graphql': must be true or false, not 'perhaps'"),
        ("port: http", "serve.yaml: key 'port': must be int, not 'http'"),
        ("weights: int4", "serve.yaml: key 'weights': must be one of"),
        ("model:", "MODEL must be a valid string, not None"),
        ("port:", "--port must be a valid integer, not None"),
        ("port: 0", "--port must be greater than or equal to 1, not 0"),
        ("upstream_model: theirs", "--upstream-model is for upstreams; MODEL must then be their URLs"),
    ],
)
def test_a_file_that_is_not_right_is_refused_in_one_line(config, text, message):
    path = config(f"model: org/model\n{text}")
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        settings_of("--config", path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: MODEL"),
        (["m", "--max-wait-second", "5"], "unknown key 'max-wait-second'; did you mean 'max_wait_seconds'?"),
        (["m", "--port", "many"], "--port: invalid int value: 'many'"),
        (["a", "b"], "MODEL must be one model, or one or more URLs of servers that have it"),
        (["a", "http://host:8000/v1"], "MODEL must be one model, or one or more URLs of servers that have it"),
    ],
)
def test_a_command_line_that_is_not_right_is_refused(arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        settings_of(*arguments)


@pytest.mark.parametrize("before", [True, False])
def test_a_flag_takes_no_value_and_an_option_takes_one(before):
    options = ["--graphql", "--no-feedback-redact", "--feedback", "f.db", "--trusted-keys", "web", "--log_content"]
    settings = settings_of(*(["m", *options] if before else [*options, "m"]))
    assert (settings.model, settings.graphql, settings.log_content, settings.feedback_redact) == (
        "m",
        True,
        True,
        False,
    )
    assert settings.trusted_keys == ["web"]


def test_urls_are_upstreams(config):
    urls = ["http://a:8000/v1", "https://b:8000/v1"]
    assert settings_of(*urls).upstreams == tuple(urls)
    assert settings_of("--config", config(yaml.safe_dump({"model": urls}))).upstreams == tuple(urls)
    settings = settings_of(urls[0], "--upstream-model", "theirs")
    assert (settings.upstreams, settings.source, settings.upstream_model) == ((urls[0],), urls[0], "theirs")
    assert settings_of("org/model").upstreams == ()


def test_the_help_tells_of_every_option(capsys):
    with pytest.raises(SystemExit):
        settings_of("--help")
    text = capsys.readouterr().out
    for name in ServerSettings.__dataclass_fields__:
        assert name in ("model", "upstreams") or f"--{name.replace('_', '-')}" in text, name


def test_the_file_of_the_guide_is_one(config):
    guide = (ROOT / "docs" / "guides" / "serving.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert (
        settings_of("--config", config(example)).max_concurrent_requests
        == yaml.safe_load(example)["max_concurrent_requests"]
    )
