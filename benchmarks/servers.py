"""Servers that the benchmarks start, ours and others', and what they use meanwhile."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import psutil

ROOT = Path(__file__).parents[1]
START_SECONDS = 600.0  # vLLM compiles first
END_SECONDS = 60.0  # ours lets running answers end
LOG_LINES = 15


@dataclass(frozen=True)
class Server:
    name: str
    port: int
    model: str  # its name in the API
    process: psutil.Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True)
class Footprint:
    """What a server and the processes that it started have, all together.

    Attributes:
        processes: How many.
        descriptors: Open files and connections.
        mebibytes: Resident memory; what processes share counts once, where the system tells (PSS).
        cpu_seconds: Since each was started, those that have ended included.
    """

    processes: int
    descriptors: int
    mebibytes: float
    cpu_seconds: float


def footprint(server: psutil.Process) -> Footprint:
    processes = descriptors = 0
    mebibytes = cpu_seconds = 0.0
    for process in [server, *server.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            memory = process.memory_full_info()
            mebibytes += getattr(memory, "pss", memory.rss) / 2**20
            cpu_seconds += sum(process.cpu_times()[:4])  # user, system, and both of the children that have ended
            descriptors += process.num_fds()
            processes += 1
    return Footprint(processes, descriptors, mebibytes, cpu_seconds)


def machine_cpu_seconds() -> float:
    """CPU seconds that this machine has used, all cores and processes together; what its host took counts."""
    times = psutil.cpu_times()
    unused = times.idle + getattr(times, "iowait", 0.0)
    counted_twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return sum(times) - unused - counted_twice


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def started(
    name: str,
    command: Sequence[str],
    port: int,
    model: str,
    environment: Mapping[str, str] | None = None,
    path: str = "/v1/models",
) -> Iterator[Server]:
    """Run a server, from when it answers at `path` to the end of the block.

    Raises:
        SystemExit: If it ends or says nothing within `START_SECONDS`; the message has the end of its log.
    """
    with tempfile.TemporaryFile() as log:
        variables = {**os.environ, **(environment or {})}
        process = psutil.Popen(list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables)
        server = Server(name, port, model, process)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(server.url + path):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{name} did not start: {' '.join(command)}\n{_end_of(log)}")
                time.sleep(0.2)
            yield server
        finally:
            end(process)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def _end_of(log: IO[bytes]) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-LOG_LINES:])


def end(process: psutil.Popen) -> None:
    """End a server and the processes that it started, those last that it leaves behind."""
    family = []
    with suppress(psutil.NoSuchProcess):
        family = process.children(recursive=True)
        process.terminate()
    with suppress(subprocess.TimeoutExpired, psutil.TimeoutExpired):
        process.wait(END_SECONDS)
    for left in [process, *family]:
        with suppress(psutil.NoSuchProcess):
            left.kill()
    psutil.wait_procs([process, *family], END_SECONDS)


def hfchat_serve(
    model: str,
    *options: str,
    name: str = "hfchat serve",
    served_as: str = "model",
    environment: Mapping[str, str] | None = None,
):
    """`hfchat serve`, from when it can generate a token."""
    port = free_port()
    command = [sys.executable, "-m", "hfchat.cli", "serve", model, "--port", str(port)]
    command += ["--served-model-name", served_as, *options]
    return started(name, command, port, served_as, environment, path="/ready")


def transformers_serve(folder: str, weights: str, name: str):
    """`transformers serve` as it comes, with weights in that type (`auto`: as they are stored)."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", folder, "--continuous-batching"]
    command += ["--dtype", weights, "--host", "127.0.0.1", "--port", str(port)]
    return started(name, command, port, folder)


def vllm_serve(environment: Path, folder: str, weights: str, slots: int, name: str):
    """vLLM's server, of the environment in that folder, with weights in that type and so many answers at a time."""
    port = free_port()
    command = [str(environment / "bin" / "vllm"), "serve", folder, "--dtype", weights, "--max-num-seqs", str(slots)]
    return started(name, [*command, "--host", "127.0.0.1", "--port", str(port)], port, folder)


@dataclass(frozen=True)
class LlamaCppSettings:
    """What llama.cpp's server serves: a GGUF file, so many answers at a time, each of at most so many tokens."""

    model: str
    slots: int
    context: int


def llamacpp_serve(settings: LlamaCppSettings, name: str):
    """llama.cpp's own server, by xllamacpp."""
    port = free_port()
    command = [sys.executable, str(ROOT / "benchmarks" / "llamacpp_server.py"), settings.model]
    return started(name, [*command, str(port), str(settings.slots), str(settings.context)], port, "model")


def settings_of_child(server: Server) -> LlamaCppSettings:
    """What `hfchat serve --engine llamacpp` has its own llama.cpp serve, read from that child's command."""
    for process in server.process.children(recursive=True):
        command = process.cmdline()
        if command[1:4] == ["-P", "-m", "hfchat.engines.llamacpp_server"]:
            settings = json.loads(command[-1])
            return LlamaCppSettings(settings["model"], settings["slots"], settings["context"])
    raise SystemExit(f"{server.name}: has no child that is llama.cpp's server")


def random_model(folder: Path, **shape: int | None) -> None:
    """A chat model that knows nothing, with the project's tokenizer and a Llama of that shape."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "tokenizer")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), **{"eos_token_id": tokenizer.eos_token_id, **shape})
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
