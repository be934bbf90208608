"""Errors that are the user's to fix, and how a program ends on one."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message is one line that names the key, file or field and says what to do about it."""


def run(main: Callable[[], object]) -> None:
    """Call `main` as the body of a program: a `UserError` becomes one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
