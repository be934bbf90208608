"""Each check is seen to fail on a server that has the fault it looks for, and to pass on one that has none."""

import asyncio
import contextlib
from dataclasses import dataclass

import pytest

from hfchat.probe.registry import checks
from hfchat.probe.suite import run
from hfchat.serving.http.auth import ApiKeys, hash_key
from tests.probe.conftest import probed
from tests.probe.faults import FAULTS, header, unaware
from tests.probe.raw_servers import RAW, raw_server

DISCONNECTS = (
    "a client leaves in the middle of a stream",
    "a client leaves while it waits for a whole answer",
    "a client crashes",
    "many clients leave while they wait",
)
SHUTDOWN = ("every stream has an end", "new requests are refused", "the process ends")


def chosen(*names):
    """The checks of these names, or with all their cases."""
    return [check for check in checks() if check.name in names or check.name.partition(":")[0] in names]


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(server, name):
    fault, names = FAULTS[name]
    for result in server.see(chosen(*names), fault).values():
        assert result.verdict == "FAIL", result


def test_without_a_fault_there_is_nothing_to_find(server):
    results = server.see(checks(("shapes", "streaming", "sampling", "tools", "structured")), patience=8).values()
    assert [result for result in results if result.verdict == "FAIL"] == []
    skipped = [result.check.name for result in results if result.verdict == "skip"]
    assert skipped == ["a stranger is 401: no key", "a stranger is 401: a wrong key"]


@pytest.mark.parametrize("name", DISCONNECTS)
def test_a_server_that_answers_nobody_is_found(name):
    with probed() as server:  # of its own: it goes on for a while
        for result in server.see(chosen(name), unaware, patience=0.2).values():
            assert result.verdict == "FAIL"
            assert "still in flight" in result.seen


def test_strangers():
    with probed(keys=ApiKeys({"probe": hash_key("secret")})) as server:
        strangers = chosen("a stranger is 401")

        def verdicts(fault):
            return {result.verdict for result in server.see(strangers, fault, api_key="secret").values()}

        async def open_door(app, scope, receive, send):
            headers = [header for header in scope["headers"] if header[0] != b"authorization"]
            await app(scope | {"headers": [*headers, (b"authorization", b"Bearer secret")]}, receive, send)

        assert verdicts(None) == {"pass"}
        assert verdicts(header("www-authenticate", None)) == {"FAIL"}
        assert verdicts(open_door) == {"FAIL"}


@pytest.mark.parametrize("name", RAW)
def test_a_hopeless_server_is_found_out(name):
    sent, patience, names = RAW[name]

    async def see():
        async with raw_server(sent, patience) as target:
            return await asyncio.gather(*(run(target, check) for check in chosen(*names)))

    for result in asyncio.run(see()):
        assert result.verdict == "FAIL", result


@dataclass
class Process:
    """What the probe knows of a server's process, without one."""

    on_terminate: object
    running: bool
    exit_status: int | None = None

    def terminate(self):
        self.on_terminate()

    def is_running(self):
        return self.running


@pytest.mark.parametrize(("process", "seen"), [((True, None), "still runs"), ((False, -15), "exit status -15")])
def test_a_server_that_ends_badly_is_found(server, process, seen):
    """It drops its streams, takes new requests, and then stays or crashes."""
    dropped = []

    async def dropping(app, scope, receive, send):
        async def send_or_drop(message):
            if dropped and message.get("more_body"):
                raise ConnectionError("dropped")
            await send(message)

        with contextlib.suppress(ConnectionError):
            await app(scope, receive, send_or_drop)

    process = Process(lambda: dropped.append(True), *process)
    results = server.see(chosen(*SHUTDOWN), dropping, patience=0.05, process=process)
    assert {result.verdict for result in results.values()} == {"FAIL"}
    assert "were cut" in results["every stream has an end"].seen
    assert seen in results["the process ends"].seen


def test_every_check_is_seen_to_fail():
    names = [name for _, names in FAULTS.values() for name in names]
    names += [name for *_, names in RAW.values() for name in names]
    failing = chosen(*names, *DISCONNECTS, *SHUTDOWN, "a stranger is 401")
    assert {check.name for check in checks()} - {check.name for check in failing} == set()
