"""vLLM as a child engine: `vllm serve`."""

import shutil

from hfchat.errors import UserError


def is_installed() -> bool:
    """Whether `vllm` is a program here."""
    return shutil.which("vllm") is not None


def check_installed() -> None:
    """Raise a `UserError` unless vLLM is installed."""
    if not is_installed():
        raise UserError(
            "--engine vllm: there is no program `vllm` on the PATH; run `pip install vllm`, here or in an environment "
            "of its own whose bin folder is on the PATH"
        )
