"""What is run on a schedule is what the programs take."""

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime

import pytest
import yaml
from cronsim import CronSim

from tests.conftest import ROOT
from tests.deploy.conftest import taken

CRONTAB = (ROOT / "deploy" / "cron" / "improve.crontab").read_text(encoding="utf-8")
KUBERNETES = ROOT / "deploy" / "kubernetes" / "components" / "improve" / "improve-cronjob.yaml"
JOBS = list(yaml.safe_load_all(KUBERNETES.read_text(encoding="utf-8")))


def entries():
    """The schedule of each line, and the command as cron hands it to the shell."""
    for line in CRONTAB.splitlines():
        if line and not re.match(r"#|\w+=", line):
            *schedule, command = line.split(None, 5)
            assert not re.search(r"(?<!\\)%", command)  # cron would cut the command there
            yield " ".join(schedule), command.replace(r"\%", "%")


def weekdays(schedule):
    moments = CronSim(schedule, datetime(2025, 1, 1, tzinfo=UTC))
    return {next(moments).strftime("%A") for _ in range(10)}


@pytest.fixture
def run_command(tmp_path):
    """Runs a command of the crontab in a folder whose `hfchat` writes down what it is asked."""
    if not shutil.which("flock"):
        pytest.skip("no flock is installed (util-linux)")
    program = tmp_path / ".venv" / "bin" / "hfchat"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > asked\n')
    program.chmod(0o755)

    def run(command):
        done = subprocess.run(["/bin/sh", "-c", command], env={**os.environ, "HOME": str(tmp_path)}, cwd="/")
        asked = tmp_path / "asked"
        lines = asked.read_text().splitlines() if asked.exists() else None
        asked.unlink(missing_ok=True)
        return done.returncode, lines

    return run


def test_the_crontab_improves_and_reports_every_week(run_command):
    (improve_at, improve), (report_at, report) = entries()
    assert weekdays(improve_at) == {"Sunday"}
    assert weekdays(report_at) == {"Monday"}
    today = datetime.now().date().isoformat()
    status, arguments = run_command(improve)
    args = taken(arguments)
    assert (status, args.registry, args.feedback) == (0, "models/assistant", "feedback.db")
    assert args.output_dir == f"outputs/improve-{today}"
    status, arguments = run_command(report)
    args = taken(arguments)
    assert (status, args.database, args.days) == (0, "feedback.db", 7)
    assert args.output == f"outputs/feedback-{today}.html"


def test_no_improvement_begins_while_another_is_at_work(run_command, tmp_path):
    (_, improve), _ = entries()
    with subprocess.Popen(["flock", tmp_path / "improve.lock", "cat"], stdin=subprocess.PIPE) as holding:
        assert holding.poll() is None
        while subprocess.run(["flock", "--nonblock", tmp_path / "improve.lock", "true"]).returncode == 0:
            pass  # until it has the lock
        status, arguments = run_command(improve)
        holding.stdin.close()
    assert status != 0
    assert arguments is None


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_a_job_runs_what_the_program_takes(job):
    assert weekdays(job["spec"]["schedule"]) == {"Sunday" if "improve" in job["metadata"]["name"] else "Monday"}
    assert job["spec"]["concurrencyPolicy"] == "Forbid"
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["hfchat"]
    taken(container["args"])
    assert container["args"][0] in ("improve", "feedback")
    known = {variable["name"] for variable in container["env"]}
    assert {*re.findall(r"\$\((\w+)\)", " ".join(container["args"]))} == {"JOB_NAME", "FEEDBACK_URL"} <= known
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["restartPolicy"] == "Never"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job["metadata"]["name"])
def test_what_a_job_writes_is_on_the_volume(job):
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/data"] == {"name": "data", "persistentVolumeClaim": {"claimName": "hfchat"}}
    assert all(word.startswith("/data/") for word in container["args"] if word.startswith("/"))
