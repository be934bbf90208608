"""Files for their owner alone, as what people wrote is not for all users of a machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hfchat.errors import UserError


@contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, in a folder that is made for it; it appears whole when the block ends, or not at all.

    Raises:
        UserError: If it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):
            part.unlink()
