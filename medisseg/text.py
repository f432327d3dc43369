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

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


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
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    rest = re.split(r"[?#;]", rest.rpartition("@")[2], maxsplit=1)[0]
    host, *path = rest.split("/")
    return "/".join([f"{scheme}://{host}", *("***" if "=" in part else part for part in path)])


def safe(text: object, keep: str = "") -> str:
    """Return a message for people: plain, every address in it without its login."""
    return _ADDRESS.sub(lambda found: without_password(found[0]), plain(text, keep))


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
