"""compose.yaml is what Compose takes, its parts fit together, and it shows only the server to other machines."""

import re
import tomllib

import promql_parser
import pytest
import yaml

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
EXAMPLE = dict(
    line.split("=", 1)
    for line in (DEPLOY / ".env.example").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)


def text(file, environment):
    """A file as Compose reads it with such an .env."""

    def value(match):
        name, kind, other = match.groups()
        if environment.get(name):
            return environment[name]
        assert kind == "-", other
        return other

    return VARIABLE.sub(value, (DEPLOY / file).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def filled():
    """The example of an .env, filled in."""
    return {name: value or "a-password" for name, value in EXAMPLE.items()}


@pytest.fixture(scope="module")
def services(filled):
    return yaml.safe_load(text("compose.yaml", filled))["services"]


@pytest.mark.parametrize("file", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_takes_it(file, filled):
    spec = pytest.importorskip("compose_spec")
    parsed = spec.PyCompose.from_yaml(text(file, filled))
    parsed.validate()


def test_the_variables_are_those_of_the_example(filled):
    used = {name for name, *_ in VARIABLE.findall((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))}
    assert used == EXAMPLE.keys()


@pytest.mark.parametrize("missing", ["HFCHAT_MODEL", "POSTGRES_PASSWORD", "GRAFANA_PASSWORD"])
def test_it_does_not_start_without_passwords(missing, filled):
    with pytest.raises(AssertionError, match=r"see \.env\.example"):
        text("compose.yaml", filled | {missing: ""})


def test_the_server_is_started_as_the_program_takes_it(services, settings_of):
    settings = settings_of(services["hfchat"]["command"])
    assert (settings.host, settings.served_model_name, settings.allow_anyone) == ("0.0.0.0", "assistant", False)
    assert settings.model == EXAMPLE["HFCHAT_MODEL"]
    assert settings.api_keys.removeprefix("/run/secrets/") in services["hfchat"]["secrets"]
    assert services["hfchat"]["ports"] == [f"{EXAMPLE['HFCHAT_PORT']}:{settings.port}"]
    user, host, database = re.fullmatch(r"postgresql://(\w+)@(\w+)/(\w+)", settings.feedback).groups()
    environment = services[host]["environment"]
    assert (environment["POSTGRES_USER"], environment["POSTGRES_DB"]) == (user, database)
    assert services["hfchat"]["environment"]["PGPASSWORD"] == environment["POSTGRES_PASSWORD"]
    grace = int(services["hfchat"]["stop_grace_period"].removesuffix("s"))
    assert grace >= settings.drain_seconds + 12  # its last words, and feedback that waits for the database


def test_other_machines_reach_the_server_only(services):
    reached = {
        name
        for name, service in services.items()
        if any(not port.startswith("127.0.0.1:") for port in service.get("ports", []))
    }
    assert reached == {"hfchat"}
    assert yaml.safe_load(text("compose.yaml", dict.fromkeys(EXAMPLE, "x")))["networks"]["inside"] == {
        "internal": True
    }
    assert services["postgres"]["networks"] == services["prometheus"]["networks"] == ["inside"]


def test_containers_may_do_little(services):
    for service in services.values():
        assert "no-new-privileges:true" in service["security_opt"]
    assert services["hfchat"]["read_only"]
    assert services["hfchat"]["cap_drop"] == ["ALL"]


def test_what_waits_for_another_waits_for_what_it_checks(services):
    image_checks_itself = {"hfchat"}  # HEALTHCHECK of the Dockerfile
    for service in services.values():
        for name, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in services[name] or name in image_checks_itself


def test_files_that_are_mounted_are_there(services):
    top = yaml.safe_load(text("compose.yaml", dict.fromkeys(EXAMPLE, "x")))
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert (DEPLOY / source).exists() if source.startswith("./") else source in top["volumes"]
        assert {*service.get("secrets", [])} <= top["secrets"].keys()
    build = services["hfchat"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    assert (DEPLOY / build["context"]).samefile(ROOT)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert services["hfchat"]["image"] == f"hfchat:{version}"


def test_prometheus_asks_the_server_with_a_key(services):
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    secret = job["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert secret in services["prometheus"]["secrets"]
    (target,) = job["static_configs"][0]["targets"]
    name, port = target.split(":")
    assert services[name]["ports"][0].endswith(f":{port}")
    assert config["rule_files"] == ["alerts.yaml"]


def test_alerts_are_of_what_is_counted(counted):
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]:
        promql_parser.parse(rule["expr"])
        labels = {"instance", "job"}
        for name in re.findall(r"\b(?:up|hfchat_\w+)\b", rule["expr"]):
            assert name == "up" or name in counted
            labels |= counted.get(name, set())
        assert {*re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))} <= labels


def test_grafana_finds_prometheus_and_the_dashboard(services):
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "hfchat.yaml").read_text())["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/hfchat.json" in mounted
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in mounted
