"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from medisseg.errors import UserError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write a file or a folder to, then rename it into place.

    On any error, Ctrl-C included, what was written is removed and ``path`` stays as it was.

    Raises:
        UserError: The disk is full, or the place cannot be written.

    Example:
        >>> with replacing("out.json") as temporary:
        ...     temporary.write_text("{}")
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {target.parent} is not a folder and cannot be made one "
            f"({error.strerror}); choose another --out"
        ) from error
    own: Path | None = None
    try:
        # A new folder of a name that nobody can know: where others may write, they could have laid
        # a link under a name that can be guessed.
        own = Path(tempfile.mkdtemp(".part", f".{target.name[-48:]}.", target.parent))
        temporary = own / target.name
        yield temporary
        _flush(temporary)
        if temporary.is_dir() and target.is_dir():
            os.replace(target, own / "old")
            try:
                os.replace(temporary, target)
            except OSError:
                os.replace(own / "old", target)
                raise
        else:
            os.replace(temporary, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left while writing {target}; free some and repeat"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(
                f"cannot write {target} ({error.strerror}); choose another --out"
            ) from error
        raise
    finally:
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)


def in_utf8(path: Path) -> Path:
    """Return a path if tables and lists can hold its name.

    Raises:
        UserError: It is in another encoding, as names from old Windows disks are.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path} is not named in UTF-8; rename it (of a whole folder: "
            "convmv -r --notest -f latin1 -t utf8 FOLDER)"
        ) from error
    return path


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
