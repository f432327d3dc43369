"""Text from outside (names of files, addresses, manifests) on terminals, in logs and in reports.

Three rules: control characters are written out, so that no name can move a cursor or forge a line;
what stands in an address to log in is left out; nothing is read as markup.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_SCHEME = r"(?:[A-Za-z][A-Za-z0-9+.-]*://|(?:rtsps?|rtmps?|https?|srt|grpcs?):/?)"
_ADDRESS = re.compile(rf"(?i:{_SCHEME})(?:[^@/]*@)?\S+")  # a password may hold spaces
_LOGIN = re.compile(r"[^\s:/@'\"(]+:[^\s@]+@(?=[\w[])")  # without a scheme before it
_SECRET = re.compile(r"[=&]|:.|%3[ad]|%26", re.I)  # in a part of a path
_NAMES_SECRET = re.compile(r"pass(word|wd|phrase)?|pwd?|token|key|secret", re.I)


def plain(text: object, keep: str = "") -> str:
    r"""Return text as one line: what is not printable is escaped, as in ``\n`` and ``\x1b``.

    Args:
        text: Anything; ``str`` of it is shown.
        keep: Characters that stay as they are, such as "\n".

    Example:
        >>> plain("a\x1b[2Jb")
        'a\\x1b[2Jb'
    """
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode("ascii")
        for one in str(text)
    )


def without_password(address: str) -> str:
    """Return an address without what may be a login: before the last @, in the path, in the query.

    Example:
        >>> without_password("rtsp://admin:P#W@10.0.0.5:554/user=a_password=PW_/live;x?y=z")
        'rtsp://10.0.0.5:554/***/live'
    """
    scheme = re.match(_SCHEME, address.lstrip(), re.I)
    if scheme is None:
        return _LOGIN.sub("***@", address)
    rest = address.lstrip()[scheme.end() :]
    rest = re.split(r"[?#;]", rest.rpartition("@")[2], maxsplit=1)[0]
    host, *path = rest.split("/")
    named = [False, *map(_NAMES_SECRET.fullmatch, path)]  # /password/PW
    shown = [
        "***" if part and (before or _SECRET.search(part)) else part
        for part, before in zip(path, named, strict=False)
    ]
    return "/".join([f"{scheme[0]}{host}", *shown])


def safe(text: object, keep: str = "") -> str:
    """Return a message for people: plain, every address in it without its login."""
    shown = _ADDRESS.sub(lambda found: without_password(found[0]), plain(text, keep))
    return _LOGIN.sub("***@", shown)


class SafeFormatter(logging.Formatter):
    """Makes every message of a log safe; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the formatted message."""
        return safe(super().formatMessage(record))


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Send the log of a command to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def console(stderr: bool = False, width: int | None = None) -> Console:
    """Return a terminal that reads no markup: text in tables and lines is shown as it is."""
    from rich.console import Console
    from rich.text import Text

    class PlainConsole(Console):
        def render_str(self, text: str, **options: object) -> Text:  # type: ignore[override]
            return super().render_str(safe(text, "\n"), **{**options, "markup": False})  # type: ignore[arg-type]

    return PlainConsole(stderr=stderr, width=width, markup=False, highlight=False)
