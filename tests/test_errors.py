"""How a program ends when the user can mend what went wrong."""

import errno
import os

import pytest

from hfchat.errors import UserError, run


def raises(error, cause=None):
    def main():
        raise error from cause

    return main


@pytest.mark.parametrize(
    ("main", "line"),
    [
        (raises(UserError("depth must be at least 1")), "error: depth must be at least 1\n"),
        (raises(OSError(errno.ENOSPC, "No space left on device")), "error: No space left on device; make room, "),
        (raises(RuntimeError("write failed: No space left on device (os error 28)")), "error: No space left on devic"),
        (raises(RuntimeError("PytorchStreamWriter failed writing file data/0")), "error: a file cannot be written in"),
        (raises(ValueError("shard"), OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))), "error: Disk quota exceeded;"),
        (
            raises(PermissionError(errno.EACCES, "Permission denied", "/import/model.safetensors")),
            "error: /import/model.safetensors: Permission denied; give the user who runs this access to it\n",
        ),
    ],
)
def test_bad_input_and_a_full_disk_are_one_line_and_status_2(main, line, capsys):
    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(line)
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a shape does not fit"),
        OSError(errno.EIO, "Input/output error"),
        PermissionError("a storage's Access Denied"),
    ],
)
def test_any_other_error_is_not_hidden(error):
    with pytest.raises(type(error), match=str(error.args[-1])):
        run(raises(error))
