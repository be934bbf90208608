"""Errors that the user can fix, and how a program ends on one."""

import errno
import os
import sys
from collections.abc import Callable

_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# When `torch.save` cannot write, its own words replace those of the system.
_PYTORCH_CANNOT_WRITE = ("iostream error", "PytorchStreamWriter failed writing", "inline_container.cc")


class UserError(Exception):
    """Bad input. The message is one line that names the key, file or field and says what to do about it."""


def run(main: Callable[[], object]) -> None:
    """Call `main` as the body of a program: what the user can fix becomes one line on stderr and exit status 2.

    These are a `UserError`, a full disk, and a local file that the process may not access.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except PermissionError as error:
        if error.filename is None:  # raised by a remote storage, for example
            raise
        print(f"error: {error.filename}: {error.strerror}; give the user who runs this access to it", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if (reason := out_of_space(error)) is None:
            raise
        print(f"error: {reason}; make room, and the same command goes on where it was", file=sys.stderr)
        sys.exit(2)


def out_of_space(error: BaseException | None) -> str | None:
    """The system's message, if an error or its cause was that a file could not be written because the disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OUT_OF_SPACE:
            return os.strerror(error.errno)
        for number in _OUT_OF_SPACE:  # safetensors and PyTorch raise their own, with the system's words in them
            if os.strerror(number) in str(error):
                return os.strerror(number)
        if any(words in str(error) for words in _PYTORCH_CANNOT_WRITE):
            return "a file cannot be written in full"
        error = error.__cause__ or error.__context__
    return None
