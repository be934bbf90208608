"""Prompts of the probes, written for hfchat, as YAML files."""

import hashlib
from importlib import resources
from typing import Any

import yaml

from hfchat.results import AskedData


def load_probe(name: str) -> dict[str, Any]:
    """What a probe of hfchat's own holds, by the name of its file: `"refusal"`."""
    return yaml.safe_load(_read(name))


def describe_probe(name: str, examples: int) -> AskedData:
    """Identify a probe by its content, as `hfchat.lineage.describe` does a file."""
    digest = hashlib.sha256(_read(name)).hexdigest()
    return AskedData(f"{_place(name)}.yaml", digest, ["Apache-2.0"], examples)


def _read(name: str) -> bytes:
    package, _, file = _place(name).rpartition("/")
    return (resources.files(package.replace("/", ".")) / f"{file}.yaml").read_bytes()


def _place(name: str) -> str:
    # The price of a GGUF file (`hfchat.gguf.price`) is in refusals too, and it is no part of the evaluation.
    return "hfchat/safety/refusal_probe" if name == "refusal" else f"hfchat/evaluation/probes/{name}"
