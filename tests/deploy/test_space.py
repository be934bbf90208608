"""The Space: what its header, its Dockerfile and its page of instructions say is there, and is taken."""

import re
import shlex
import shutil

import pytest
import yaml
from huggingface_hub import SpaceCard

from hfchat import cli
from hfchat.errors import UserError
from hfchat.hub.artefacts import Artefact, check_leaks, collect
from hfchat.hub.cards import add_card
from hfchat.serving import server
from tests.conftest import ROOT

SPACE = ROOT / "deploy" / "space"
DOCKERFILE = (SPACE / "Dockerfile").read_text(encoding="utf-8")


def instruction(name: str) -> list[str]:
    """The arguments of all instructions of this name, continued lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.removeprefix(f"{name} ") for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_the_header_is_that_of_a_docker_space():
    header = SpaceCard.load(SPACE / "README.md").data
    assert (header.sdk, header.app_port) == ("docker", 7860)
    assert instruction("EXPOSE") == [str(header.app_port)]
    assert len(header.to_dict()["short_description"]) <= 60  # more is refused by the Hub


def test_it_runs_as_a_user_and_serves_with_guards_and_bounds(monkeypatch):
    (command,) = instruction("CMD")
    shell, option, line = yaml.safe_load(command)  # JSON
    assert (shell, option) == ("sh", "-c")
    model = dict(entry.split("=", 1) for text in instruction("ENV") for entry in text.split())["MODEL"]
    words = shlex.split(line.removeprefix("exec ").replace('"$MODEL"', model))
    served = []
    monkeypatch.setattr(server, "serve", served.append)
    monkeypatch.setattr("sys.argv", words)
    cli.main()
    (settings,) = served
    assert (settings.model, settings.host, settings.port) == (model, "0.0.0.0", 7860)
    assert server._keys(settings) is None  # it says outright that it lets anyone in
    assert settings.guards == "default"
    assert (settings.feedback, settings.log_content, settings.keep_conversations) == (None, False, False)
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    assert f"At most {settings.max_concurrent_requests}\nanswers" in text
    assert f"{settings.max_waiting_requests} requests wait" in text
    assert f"after {settings.default_max_tokens} tokens" in text
    assert settings.max_generation_seconds == 120
    assert instruction("USER") == ["chat"]
    assert DOCKERFILE.index("USER chat") < DOCKERFILE.index("CMD")


def test_its_instructions_name_what_is_there():
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    for file in re.findall(r"(?:recipes|deploy)/[\w/.-]+", text):
        assert (ROOT / file).exists(), file
    settings = yaml.safe_load((ROOT / "recipes" / "configs" / "publish" / "space.yaml").read_text(encoding="utf-8"))
    assert [Artefact.parse(entry).repository("alice/assistant") for entry in settings["artefacts"]] == [
        "alice/assistant",
        "alice/assistant-space",
    ]


def test_it_is_published_with_the_wheel_and_the_model_that_it_serves(tmp_path):
    folder = tmp_path / "space"
    shutil.copytree(SPACE, folder, ignore=shutil.ignore_patterns("*.whl"))
    entry = Artefact.parse({"kind": "space", "folder": str(folder)})
    with pytest.raises(UserError, match=r"has no hfchat-\*.whl.*pip wheel --no-deps"):
        collect(entry, "alice/assistant-space", tmp_path / "1")
    (folder / "hfchat-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    space = collect(entry, "alice/assistant-space", tmp_path / "2")
    add_card(space, {}, served="alice/assistant")
    check_leaks([space])
    assert set(space.sizes) == {"README.md", "Dockerfile", "hfchat-0.1.0-py3-none-any.whl"}
    assert "\nENV MODEL=alice/assistant\n" in space.read("Dockerfile")
    (folder / "hfchat-0.0.9-py3-none-any.whl").write_bytes(b"old")
    with pytest.raises(UserError, match="has several wheels"):
        collect(entry, "alice/assistant-space", tmp_path / "3")
