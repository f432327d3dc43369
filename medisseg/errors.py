"""Errors that a user can cause, and how a command ends."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from medisseg.text import safe


class UserError(Exception):
    """Something the user can mend: the message says what was got, what was expected, what to do."""


def command(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Run ``main(None)`` as a command and exit.

    Exit codes: 0 (or what ``main`` returns), 2 for a :class:`UserError` (one line on standard
    error, no traceback), 130 after Ctrl-C, 141 when the reader of our output went away.
    """
    try:
        code = main(None) or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {safe(error)}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # Python would complain again while it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = safe(str(error.filename))
        print(f"error: {name[:60]}... is longer than a file's name may be", file=sys.stderr)
        code = 2
    sys.exit(code)
