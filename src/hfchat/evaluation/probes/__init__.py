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
    return AskedData(f"hfchat/evaluation/probes/{name}.yaml", digest, ["Apache-2.0"], examples)


def _read(name: str) -> bytes:
    return (resources.files(__name__) / f"{name}.yaml").read_bytes()
