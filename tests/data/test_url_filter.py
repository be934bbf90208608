import os
import socket
import subprocess
import sys

import dill
import pytest
from datatrove.data import Document

from hfchat.data.removal import Removal
from hfchat.data.url_filter import UrlFilter

BLOCKED = {
    "https://www.blocked-site.com/page": "domain",
    "https://inner.open-site.com/page": "subdomain",
    "https://open-site.com/one-page": "url",
    "https://open-site.com/evil-page": "hard_blacklisted",
    "https://open-site.com/so-so-meh-page": "soft_blacklisted",
    "https://open-site.com/uncleverly": "blacklisted_subword",
}
PASSED = (
    "https://open-site.com/",
    "https://en.wikipedia.org/wiki/Lobster",
    "https://open-site.com/meh-page",
    "",
    None,
)
# Two processes with an empty cache at the same time, each without a network.
PROCESS = """
import socket
def refuse(*args, **kwargs): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
from datatrove.data import Document
from hfchat.data.url_filter import UrlFilter
step = UrlFilter()
for url in ("https://pornhub.com/", "https://en.wikipedia.org/wiki/Lobster"):
    print(step.filter(Document("text", "1", metadata={"url": url})))
"""


@pytest.fixture
def step(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return UrlFilter(
        use_integrated_lists=False,
        extra_domains=["blocked-site.com", "inner.open-site.com"],
        extra_urls=["https://open-site.com/one-page"],
        banned_words=["evil"],
        banned_subwords=["clever"],
        soft_banned_words=["so", "meh"],
    )


def document(url):
    return Document("text", "1", metadata={} if url is None else {"url": url})


@pytest.mark.parametrize(("url", "reason"), BLOCKED.items())
def test_a_blocked_url_is_removed_with_its_reason(step, url, reason):
    found = document(url)
    assert dill.loads(dill.dumps(step)).filter(found) == (False, reason)
    assert Removal.of(found).detail == url


@pytest.mark.parametrize("url", PASSED)
def test_other_urls_and_documents_without_one_pass(step, url):
    found = document(url)
    assert step.filter(found) is True
    assert Removal.of(found) is None


def test_without_the_integrated_lists_only_the_users_count(step):
    assert step.filter(document("https://pornhub.com/")) is True


def test_integrated_lists_unpack_once_for_two_processes_without_a_network(tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_ASSETS_CACHE": str(tmp_path / "assets")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    for out, err in results:
        assert out.splitlines() == ["(False, 'domain')", "True"], err[-2000:]
    assert sum("Extracting url filter" in err for _, err in results) == 1
