"""Files for their owner alone, as what people wrote is not for all users of a machine."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hfchat.errors import UserError


@contextmanager
def private_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, in a folder that is made for it; it appears whole when the block ends, or not at all.

    Until then it has a name that nobody knows, so that in a folder where others may write, nobody can have put a link
    or a file of their own there.

    Raises:
        UserError: If it cannot be written.
    """
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with open(descriptor, "wb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        if part is not None:
            with suppress(OSError):
                os.unlink(part)
