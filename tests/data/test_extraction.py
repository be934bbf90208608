"""The process that turns markup into text must not outlive the one that started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datatrove.data import Document

from hfchat.data.extraction import Extraction
from hfchat.data.removal import Removal
from hfchat.data.web import html_to_text

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
    extractor = int(process.stdout.readline())  # it has the document
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while is_running(extractor) and time.monotonic() < deadline:
        time.sleep(0.05)
    outlived = is_running(extractor)
    if outlived:
        os.kill(extractor, signal.SIGKILL)
    assert not outlived


def swell(text: str) -> str:
    """An extractor that takes as many bytes as a text says."""
    return str(len(bytearray(int(text or 0))))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux sees to it")
def test_a_page_that_needs_too_much_memory_costs_itself():
    documents = [Document(str(size), str(size)) for size in (1000, 400_000_000, 2000)]
    small, large, next_one = Extraction(swell, timeout=30, memory=200_000_000).run(iter(documents))
    assert (small.text, next_one.text) == ("1000", "2000")
    assert Removal.of(large).reason == "extraction_failed"
    assert Removal.of(large).detail == "it needs more than 200,000,000 bytes of memory"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux sees to it")
def test_a_page_that_grows_in_a_parser_written_in_c_costs_itself():
    pages = [
        "<p>a" * 200_000,
        "<html><body><p>" + "A ferry crosses the river every hour. " * 9 + "</p></body></html>",
    ]
    documents = [Document(page, "0") for page in pages]
    large, small = Extraction(html_to_text, timeout=60, memory=40_000_000).run(iter(documents))
    assert Removal.of(large).reason == "extraction_failed"
    assert small.text.startswith("A ferry")
