"""The service of systemd: nothing here starts it, but its lines are what systemd and `hfchat` take."""

import configparser
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

UNIT = ROOT / "deploy" / "systemd" / "hfchat.service"


@pytest.fixture(scope="module")
def service():
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str
    parser.read(UNIT, encoding="utf-8")
    return parser["Service"]


def test_systemd_knows_its_lines(service, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze is installed (systemd)")
    program = shlex.split(service["ExecStart"])[0]
    unit = tmp_path / UNIT.name  # verification wants the program to exist
    unit.write_text(UNIT.read_text(encoding="utf-8").replace(program, sys.executable), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False, timeout=60)
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, [])


def test_it_serves_with_keys_from_the_folder_that_it_may_write_to(service, settings_of):
    program, *arguments = shlex.split(service["ExecStart"])
    assert program.startswith(f"{service['WorkingDirectory']}/.venv/bin/")
    assert settings_of(arguments).api_keys == "keys.yaml"
    assert service["ReadWritePaths"] == service["WorkingDirectory"]


def test_it_is_given_the_time_that_a_shutdown_takes(service, settings_of):
    settings = settings_of(shlex.split(service["ExecStart"])[1:])
    assert int(service["TimeoutStopSec"]) > settings.drain_seconds
