"""The workflow for GitHub's machines: it cannot be run here, but what it says can be compared with what is there."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from tests.conftest import ROOT
from tests.test_packaging import PROJECT

PATH = ROOT / ".github" / "workflows" / "ci.yaml"
JOBS = yaml.safe_load(PATH.read_text(encoding="utf-8"))["jobs"]
COMMANDS = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]


def test_it_is_as_githubs_schema_says():
    pytest.importorskip("check_jsonschema", reason="the schema is not installed")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(PATH)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == 0, finished.stdout


def test_every_python_that_the_package_names_is_tested():
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert JOBS["newest"]["strategy"]["matrix"]["python"] == named
    oldest = next(step["with"] for step in JOBS["oldest"]["steps"] if "setup-python" in step.get("uses", ""))
    assert PROJECT["requires-python"] == f">={oldest['python-version']}"


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_there(command):
    name, *arguments = command.split()
    if name == "make":
        subprocess.run(["make", "--dry-run", arguments[0]], cwd=ROOT, check=True, capture_output=True, timeout=60)
    else:
        assert os.access(ROOT / name, os.X_OK)
