"""What the benchmarks of servers compute, and how they start and end one. A scripted server stands for all."""

import asyncio
import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from benchmarks import serving, soak
from benchmarks.servers import Footprint, LlamaCppSettings, Server, footprint, free_port, settings_of_child, started
from benchmarks.serving import Contestant, Idleness, Measured

from hfchat.engines.llamacpp import LlamaCpp

# A server that answers everything, and has started another process.
SCRIPTED = """
import subprocess, sys
from http.server import HTTPServer, BaseHTTPRequestHandler
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def cells(table: str) -> list[list[str]]:
    """The cells of each line of a Markdown table, without its header."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


def rounds(*rates: float) -> list[Measured]:
    return [Measured(rate, [0.1, 0.2], 100.0 * rate, 1.0) for rate in rates]


def test_a_line_has_medians_and_the_ratio_of_each_round_to_the_peer():
    contestants = [Contestant("ours", lambda: None, "theirs"), Contestant("theirs", lambda: None)]
    measured = {("ours", False, 8): rounds(10, 30, 12), ("theirs", False, 8): rounds(20, 20, 12)}
    ours, theirs = cells(serving.table(contestants, measured))
    assert ours == ["ours", "", "8", "12", "150", "200", "1,200", "1", "1.00 (0.50 to 1.50)"]
    assert theirs[3] == "20"
    assert theirs[-1] == ""


def test_what_was_measured_beside_a_busy_process_is_compared_with_the_same():
    contestants = [Contestant("ours", lambda: None, "theirs"), Contestant("theirs", lambda: None)]
    measured = {
        ("ours", False, 1): rounds(10),
        ("ours", True, 1): rounds(6),
        ("theirs", False, 1): rounds(10),
        ("theirs", True, 1): rounds(2),
    }
    ratios = {(line[0], line[1]): line[-1] for line in cells(serving.table(contestants, measured))}
    assert ratios["ours", ""] == "1.00"
    assert ratios["ours", "a busy process"] == "3.00"


def test_the_last_turn_is_compared_with_the_first_of_the_same_conversation():
    measured = {"ours": [[0.1, 0.1, 0.1, 0.2], [0.3, 0.1, 0.1, 0.3], [0.2, 0.3, 0.1, 0.1]]}
    table = serving.table_of_turns(measured)
    assert "turn 2, ms | turn 4, ms | turn 4 of turn 1" in table
    assert cells(table) == [["ours", "200", "100", "200", "1.00 (0.50 to 2.00)"]]


def test_conversations_share_no_beginning_and_their_turns_have_150_words():
    first, other = serving.turn(1, 0)["content"], serving.turn(2, 0)["content"]
    assert first.split()[:2] != other.split()[:2]
    assert all(140 <= len(serving.turn(1, number)["content"].split()) <= 160 for number in range(8))
    assert serving.turn(1, 0) != serving.turn(1, 1)
    asked = serving.conversations(5)
    assert next(asked) != next(asked)
    assert next(serving.conversations(5)) == next(serving.conversations(5))


@pytest.mark.parametrize(
    ("load", "used", "meanwhile", "idle"),
    [(0.1, 0.02, 0.05, True), (0.9, 0.02, 0.05, False), (0.1, 1.5, 0.05, False), (0.1, 0.02, 0.7, False)],
)
def test_the_line_below_the_table_says_whether_the_machine_was_idle(monkeypatch, load, used, meanwhile, idle):
    seconds = iter([100.0, 100.0 + used])
    monkeypatch.setattr(serving, "machine_cpu_seconds", lambda: next(seconds))
    monkeypatch.setattr(serving.time, "sleep", lambda seconds: None)
    idleness = Idleness(load, meanwhile=[meanwhile])
    idleness.look()
    assert idleness.idle is idle
    assert idleness.note().startswith("The machine was idle:" if idle else "**The machine was not idle**:")
    assert f"{used:.2f} cores" in idleness.note()


def test_what_the_server_and_this_process_use_is_not_other_programs(monkeypatch):
    machine = iter([1000.0, 1010.0])  # of which the server used 7, this process 1, and others 2
    server = iter([50.0, 57.0])
    clock = iter([0.0, 4.0])
    monkeypatch.setattr(serving, "machine_cpu_seconds", lambda: next(machine))
    monkeypatch.setattr(serving, "footprint", lambda process: Footprint(1, 1, 1.0, next(server)))
    own = iter([(3.0, 0.0), (3.5, 0.5)])
    monkeypatch.setattr(serving.psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: next(own)))
    monkeypatch.setattr(serving.time, "perf_counter", lambda: next(clock))
    idleness = Idleness(0.0)
    with serving.watched(idleness, SimpleNamespace()):
        pass
    assert idleness.meanwhile == [pytest.approx(0.5)]


def test_servers_run_one_at_a_time_and_each_second_round_goes_backwards():
    running, seen = [], []

    def contestant(name: str) -> Contestant:
        @contextmanager
        def start():
            assert not running
            running.append(name)
            yield Server(name, 1, "model", None)
            running.remove(name)

        return Contestant(name, start)

    idleness = SimpleNamespace(look=lambda: seen.append("looked"))
    serving.in_turn(
        [contestant("a"), contestant("b")], 2, idleness, lambda server, number: seen.append((server.name, number))
    )
    assert seen == ["looked", ("a", 0), "looked", ("b", 0), "looked", ("b", 1), "looked", ("a", 1)]


def test_an_answer_is_counted_by_its_usage_and_read_up_to_done():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            events = [{"choices": [{"delta": {"role": "assistant"}}]}, {"choices": [{"delta": {"content": "Hi all"}}]}]
            events.append({"choices": [], "usage": {"completion_tokens": 3}})
            lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
            self.wfile.write(f"{len(lines):x}\r\n{lines}\r\n".encode())  # and no end of the body, as llama.cpp's does

        def log_message(self, *arguments):
            pass

    async def ask(server: Server):
        async with serving.http_client() as client:
            return await serving.answer(client, server, [{"role": "user", "content": "Hi"}], 5)

    asked = []
    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        answer = asyncio.run(ask(Server("scripted", listening.server_port, "model", None)))
        listening.shutdown()
    assert (answer.text, answer.tokens) == ("Hi all", 3)
    assert asked[0]["max_tokens"] == 5
    assert asked[0]["temperature"] == 0


def test_a_server_is_ended_with_what_it_started():
    port = free_port()
    with started("scripted", [sys.executable, "-c", SCRIPTED, str(port)], port, "model") as server:
        used = footprint(server.process)
        family = [server.process, *server.process.children()]
    assert used.processes == len(family) == 2
    assert used.mebibytes > 2
    assert used.descriptors > 3
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)


def test_a_server_that_does_not_start_is_told_with_the_end_of_its_log():
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    starting = started("scripted", command, free_port(), "model")
    with pytest.raises(SystemExit, match=r"(?s)scripted did not start: .*no such model"), starting:
        pass


def test_llama_cpp_gets_the_file_the_slots_and_the_context_of_ours():
    settings = {"model": "m.gguf", "slots": 9, "context": 4096, "adapters": []}
    child = ["python", "-P", "-m", "hfchat.engines.llamacpp_server", "8123", json.dumps(settings)]
    keeper = ["python", "-m", "hfchat.engines.keeper", *child]
    process = SimpleNamespace(
        children=lambda recursive: [SimpleNamespace(cmdline=lambda c=command: c) for command in (keeper, child)]
    )
    assert settings_of_child(Server("ours", 1, "m", process)) == LlamaCppSettings("m.gguf", 9, 4096)
    with pytest.raises(SystemExit, match="no child"):
        settings_of_child(Server("ours", 1, "m", SimpleNamespace(children=lambda recursive: [])))


def test_the_benchmark_reads_the_command_that_the_engine_has():
    """`settings_of_child` knows how the child of llama.cpp is started."""
    command = LlamaCpp(Path("m.gguf"), slots=9, context=4096).program.command
    process = SimpleNamespace(children=lambda recursive: [SimpleNamespace(cmdline=lambda: list(command))])
    assert settings_of_child(Server("ours", 1, "m", process)) == LlamaCppSettings("m.gguf", 9, 4096)


@pytest.mark.parametrize(
    ("rest", "left"),
    [
        (soak.Rest(0, Footprint(2, 13, 1090.0, 9.0), 0.1), []),
        (soak.Rest(2, Footprint(2, 13, 1000.0, 9.0), 0.0), ["requests that are still answered: 2"]),
        (soak.Rest(0, Footprint(3, 14, 1000.0, 9.0), 0.0), ["processes: 1", "open files and connections: 1"]),
        (soak.Rest(0, Footprint(2, 13, 1200.0, 9.0), 0.0), ["MiB: 200"]),
        (soak.Rest(0, Footprint(2, 13, 1000.0, 9.0), 1.0), ["cores at work: 1.00"]),
    ],
)
def test_a_soak_says_what_is_left_behind(rest, left):
    assert soak.left_behind(soak.Rest(0, Footprint(2, 13, 1000.0, 5.0), 0.0), rest) == left
