"""The process of `hfchat.engines.llamacpp`: `python -m hfchat.engines.llamacpp_server PORT SETTINGS`."""

import json
import os
import signal
import sys
from typing import TypedDict

import xllamacpp

from hfchat.engines.llamacpp import KEY_VARIABLE

# A step reads at most so much of the prompts that wait, and the answers of others go on between two steps. With 128,
# which interrupts them for half a second instead of two, 8 streams had 0.90 of the tokens/s that they have with this.
_PROMPT_TOKENS = 512
_WARNINGS = 2  # and errors; more would be a few lines for each answer
_PROMPT_CACHE_MIB = 512  # for conversations whose slot another one has taken


class _Settings(TypedDict):
    """See `hfchat.engines.llamacpp.LlamaCpp`."""

    model: str
    slots: int
    context: int
    adapters: list[str]


def _parameters(port: int, key: str, settings: _Settings) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = settings["model"]
    # Each slot has a part of the cache for itself: where all share it, a full one ends the answers of all.
    parameters.n_parallel = settings["slots"]
    parameters.n_ctx = settings["slots"] * settings["context"]
    parameters.kv_unified = False
    parameters.fit_params = False  # it would make the context smaller
    parameters.cache_ram_mib = _PROMPT_CACHE_MIB
    parameters.n_batch = parameters.n_ubatch = _PROMPT_TOKENS
    parameters.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in settings["adapters"]]

    # It counts the cores of the whole machine, of which a container may have two.
    if (threads := os.environ.get("OMP_NUM_THREADS", "")).isdecimal():
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = int(threads)

    # Only we ask it, by token ids: it needs no template, no page and no routes that tell of others' answers.
    parameters.port, parameters.api_keys = port, [key]
    parameters.use_jinja, parameters.chat_template = False, "chatml"
    parameters.ui = parameters.endpoint_slots = parameters.endpoint_props = False
    parameters.verbosity = _WARNINGS
    return parameters


if __name__ == "__main__":
    port, settings = int(sys.argv[1]), json.loads(sys.argv[2])
    server = xllamacpp.Server(_parameters(port, os.environ[KEY_VARIABLE], settings))
    while True:  # its threads do the work, until a signal ends the process
        signal.pause()
