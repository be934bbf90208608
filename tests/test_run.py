import json
import subprocess
import sys

import pytest

from hfchat import demo, pipeline


def lines(run_name, output_dir):
    return [" ".join(demo.command(step, run_name, output_dir)) for step in demo.STEPS]


def test_the_commands_are_those_that_a_user_would_type(monkeypatch):
    monkeypatch.chdir(demo.Path(__file__).parents[1])
    assert lines("demo", "outputs/demo")[0] == (
        "python recipes/prepare_data.py --config recipes/configs/demo/prepare_data.yaml"
    )
    assert lines("demo", "outputs/demo")[3] == (
        "accelerate launch --quiet --config_file accelerate_configs/cpu.yaml "
        "recipes/finetune.py --config recipes/configs/demo/finetune.yaml"
    )


def test_another_output_folder_reaches_every_stage(monkeypatch):
    monkeypatch.chdir(demo.Path(__file__).parents[1])
    for line in lines("demo-quick", "/elsewhere"):
        assert "--output_dir /elsewhere/" in line
        assert "outputs/" not in line.split("--output_dir")[1]
    assert "--tokenizer_name /elsewhere/tokenizer" in lines("demo-quick", "/elsewhere")[2]
    assert "fine-tuned=/elsewhere/assistant/merged" in lines("demo-quick", "/elsewhere")[4]


def test_outside_a_checkout_the_recipes_are_found(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = demo.command(demo.STEPS[3], "demo", "outputs/demo")
    assert all(demo.Path(part).exists() for part in command if part.endswith((".py", ".yaml")))
    assert demo.Path(command[command.index("--dataset_name") + 1]).is_dir()
    command = demo.command(demo.STEPS[4], "demo", "outputs/demo")
    first = json.loads(command[command.index("--tasks") + 1])
    assert demo.Path(first["dataset_name"]).is_dir()


def test_a_failed_stage_ends_the_demo_with_its_status(capsys):
    with pytest.raises(SystemExit) as stopped:
        pipeline.run_recipe([sys.executable, "-c", "raise SystemExit(3)"])
    assert stopped.value.code == 3
    assert "The same command goes on from here" in capsys.readouterr().err


def test_a_taken_port_is_known_before_any_work(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "hfchat.cli", "demo", "--port", port, "--output-dir", str(tmp_path / "out")]
        finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: port {port} is already in use")
    assert not (tmp_path / "out").exists()
