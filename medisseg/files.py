"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
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
    # The end of the name is enough, and keeps the longest names that a folder takes possible.
    temporary = target.with_name(f".{target.name[-48:]}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {target.parent} is not a folder and cannot be made one "
            f"({error.strerror}); choose another --out"
        ) from error
    try:
        yield temporary
        _flush(temporary)
        if temporary.is_dir() and target.is_dir():
            _swap_folders(temporary, target)
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
        _remove(temporary)


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


def _swap_folders(new: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
