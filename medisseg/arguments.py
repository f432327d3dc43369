"""The command line's parser: every mistake in one line, with the nearest known word."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable
from typing import NoReturn

from medisseg.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises :class:`UserError` where argparse prints its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message; an unknown option or command gets the nearest.

        Raises:
            UserError: Always.
        """
        if unknown := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            options = (name for name in self._option_string_actions if name.startswith("--"))
            message += _nearest(unknown[1], options)
        elif wrong := re.search(r"invalid choice: '([^']*)'", message):
            choices = (str(word) for one in self._actions for word in one.choices or ())
            message += _nearest(wrong[1], choices)
        raise UserError(f"{message} (--help shows all options)")


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
