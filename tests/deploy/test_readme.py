"""What deploy/README.md tells people to type is what the programs take."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hfchat.serving.http.auth import load_keys
from tests.conftest import ROOT
from tests.deploy.conftest import taken

DEPLOY = ROOT / "deploy"
README = (DEPLOY / "README.md").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]


def commands(program):
    return [shlex.split(line) for line in COMMANDS if line.startswith(program)]


def hfchat_arguments():
    """Those of each `hfchat` that the README starts, by itself or in a container."""
    yield from (words[1:] for words in commands("hfchat ") if "|" not in words)
    for words in commands("docker compose run"):
        (service,) = [i for i, word in enumerate(words) if word in COMPOSE["services"]][:1]
        yield words[service + 1 :]
    for words in commands("kubectl exec"):
        yield words[words.index("--") + 2 :]
    for words in commands("docker run"):
        yield words[words.index("hfchat:0.1.0") + 1 :]


@pytest.mark.parametrize("arguments", hfchat_arguments(), ids=" ".join)
def test_hfchat_takes_it(arguments):
    taken(arguments)


def test_files_that_are_named_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (DEPLOY / target).exists(), target
    titles = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", README.replace("\n", " ")):
        assert anchor in titles
    for words in commands("docker build"):
        assert (ROOT / words[words.index("-f") + 1]).is_file()
    for words in commands("kubectl"):
        if "-k" in words:
            assert (DEPLOY / "kubernetes" / words[words.index("-k") + 1] / "kustomization.yaml").is_file()
    for words in commands("sbatch"):
        assert all((ROOT / word).is_file() for word in words if word.startswith(("deploy/", "recipes/")))


def test_the_archiver_takes_it(monkeypatch):
    packaging = pytest.importorskip("model_archiver.model_packaging")
    (words,) = commands("torch-model-archiver")
    monkeypatch.setattr(sys, "argv", words)
    args = packaging.ArgParser.export_model_args_parser()
    assert (ROOT / args.handler).is_file()
    assert (ROOT / args.config_file).is_file()


def test_kubernetes_takes_the_ingress():
    validation = pytest.importorskip("kubernetes_validate")
    (ingress,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    ingress = yaml.safe_load(ingress)
    validation.validate(ingress, "1.37", strict=True)
    service = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    services = yaml.safe_load_all((DEPLOY / "kubernetes" / "base" / "server.yaml").read_text())
    (found,) = [one for one in services if one["kind"] == "Service" and one["metadata"]["name"] == service["name"]]
    assert service["port"]["name"] in {port["name"] for port in found["spec"]["ports"]}


def test_compose_is_set_up_as_told(tmp_path):
    """The commands up to `docker compose up`, run in a copy."""
    (block,) = [block for block in BLOCKS if "secrets/prometheus-key" in block]
    folder = tmp_path / "deploy"
    folder.mkdir()
    (folder / ".env.example").write_text((DEPLOY / ".env.example").read_text())
    (tmp_path / "docker").write_text("#!/bin/sh\n")
    (tmp_path / "docker").chmod(0o755)
    paths = [str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {"PATH": os.pathsep.join(paths)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    keys = load_keys(str(folder / "secrets" / "api-keys"), {})
    assert keys.names == ("alice", "prometheus")
    assert keys.name_of((folder / "secrets" / "prometheus-key").read_text().strip()) == "prometheus"
    shown = re.search(r"hfchat-\S+", done.stderr)[0]  # to whoever types it, and nowhere else
    assert keys.name_of(shown) == "alice"
    assert not any(shown in file.read_text() for file in folder.rglob("*") if file.is_file())
    passwords = re.findall(r"^\w+_PASSWORD=(\w{48})$", (folder / ".env").read_text(), re.MULTILINE)
    assert len({*passwords}) == 2
    assert oct((folder / "secrets").stat().st_mode)[-3:] == "700"
