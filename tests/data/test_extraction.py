"""The process that turns markup into text must not outlive the one that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, time
from datatrove.data import Document
from hfchat.data.extraction import Extraction

parent = os.getpid()

def extract(text):
    if os.getpid() != parent:
        print(os.getpid(), flush=True)
    while text == "hang":
        pass
    return text or "warm"

for document in Extraction(extract, 60).run(iter([Document(sys.argv[1], "1")])):
    time.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux sees to it")
@pytest.mark.parametrize("text", ["hang", "done"])
def test_the_extractor_ends_with_the_process_that_started_it(text):
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, text], stdout=subprocess.PIPE, text=True)
    extractor = int(process.stdout.readline())  # of the warm-up
    assert int(process.stdout.readline()) == extractor  # it has the document
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while is_running(extractor) and time.monotonic() < deadline:
        time.sleep(0.05)
    outlived = is_running(extractor)
    if outlived:
        os.kill(extractor, signal.SIGKILL)
    assert not outlived
