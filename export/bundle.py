"""A bundle: one folder, or one ``.mdsg`` zip, with an engine, its ONNX graph and ``manifest.json``.

The manifest says what the engine is, what it was proved to do and the SHA-256 of every part. Parts
are read into memory, hashed and used from there: nothing is deserialised that was not checked, and
nothing can change between the check and the use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.traits import BACKENDS, PRECISIONS, Traits
from medisseg.checkpoint import BUNDLE_MANIFEST as MANIFEST
from medisseg.checkpoint import BUNDLE_SUFFIX as SUFFIX
from medisseg.convention import InputConvention
from medisseg.errors import UserError
from medisseg.files import replacing
from medisseg.labels import read_labels

FORMAT = 1
BUILD = "build one with: medisseg build CHECKPOINT"
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    KeyError,
    ValueError,
    NotImplementedError,
    RuntimeError,  # "encrypted", when a flag's bit is flipped
)
_REQUIRED = [
    "format",
    "files",
    "backend",
    "backend_version",
    "precision",
    "fp16_share",
    "compute_capabilities",
    "size",
    "batch",
    "threshold",
    "classes",
    "convention",
    "verification",
    "tolerance",
    "checkpoint",
    "command",
    "digest",
]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was checked; parts are checked as they are read.

    Attributes:
        path: The folder or the ``.mdsg`` file.
        manifest: The contents of ``manifest.json``.

    Example:
        >>> bundle = Bundle.open("runs/edge.mdsg")
        >>> bundle.manifest["verification"]["dice_agreement"]
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Read and check the manifest of a bundle.

        Raises:
            UserError: No bundle, an empty or damaged one, or one of a newer format.
        """
        place = Path(path)
        text = _part(place, MANIFEST)
        try:
            manifest = json.loads(text)
        except ValueError as error:
            raise UserError(f"{place}: {MANIFEST} is not JSON ({error}); build it again") from error
        if not isinstance(manifest, dict) or manifest.get("digest") != digest(manifest):
            raise UserError(
                f"{place}: {MANIFEST} was changed or damaged since it was built; build it again"
            )
        if manifest.get("format") != FORMAT:
            raise UserError(
                f"{place}: bundle format {manifest.get('format')}, this version reads {FORMAT}; "
                f"build it again: {manifest.get('command')}"
            )
        missing = [key for key in _REQUIRED if key not in manifest]
        known = manifest.get("backend") in BACKENDS and manifest.get("precision") in PRECISIONS
        if missing or not known:
            lacking = ", ".join(missing) or "a known backend and precision"
            raise UserError(f"{place}: {MANIFEST} lacks {lacking}; build it again")
        return cls(place, manifest)

    def read(self, name: str) -> bytes:
        """Return one part's bytes, after its SHA-256 was found to be the manifest's.

        Raises:
            UserError: The part is absent, empty, or not what was built.
        """
        expected = self.manifest["files"].get(name)
        if expected is None:
            raise UserError(f"{self.path} has no {name}; it has {sorted(self.manifest['files'])}")
        content = _part(self.path, name)
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise UserError(
                f"{self.path}: {name} is not what was built (SHA-256 {found[:12]}, expected "
                f"{expected[:12]}, {len(content)} bytes); {self.rebuild}"
            )
        return content

    def check(self) -> None:
        """Read every part once.

        Raises:
            UserError: A part is not what was built.
        """
        for name in self.manifest["files"]:
            self.read(name)

    @property
    def rebuild(self) -> str:
        """The command that builds this bundle again."""
        return f"build it again: {self.manifest['command']}"

    @property
    def traits(self) -> Traits:
        """What the network is, for an engine."""
        manifest = self.manifest
        raw = manifest.get("raw_frames") or {}
        return Traits(
            convention=InputConvention.from_dict(manifest["convention"]),
            threshold=float(manifest["threshold"]),
            classes=int(manifest["classes"]),
            labels=read_labels(manifest.get("labels", ()), int(manifest["classes"])),
            max_batch=int(manifest["batch"][-1]),
            uncertainty=bool(manifest.get("uncertainty")),
            frame_size=tuple(raw["size"]) if raw else None,
            frame_color=raw.get("color", "RGB"),
        )


def digest(manifest: Mapping[str, object]) -> str:
    """Return the SHA-256 of a manifest without its own ``digest``."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_bundle(
    path: str | Path, parts: Mapping[str, bytes], facts: Mapping[str, object]
) -> Bundle:
    """Write a bundle beside ``path`` and rename it into place.

    Args:
        path: A folder, or a file that ends in ``.mdsg`` for one zip.
        parts: File name to contents.
        facts: The manifest without ``files``, ``format`` and ``digest``.

    Raises:
        UserError: ``path`` is something else than a bundle, or cannot be written.
    """
    place = Path(path)
    refuse_other(place)
    files = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    manifest: dict[str, object] = {"format": FORMAT, **facts, "files": files}
    manifest = json.loads(json.dumps(manifest))  # tuples become lists before they are hashed
    manifest["digest"] = digest(manifest)
    whole = {**parts, MANIFEST: json.dumps(manifest, indent=2).encode()}
    with replacing(place) as temporary:
        if place.suffix == SUFFIX:
            # Stored, not deflated: weights do not compress, and a copy is fast.
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                for name, content in whole.items():
                    archive.writestr(name, content)
        else:
            temporary.mkdir()
            for name, content in whole.items():
                (temporary / name).write_bytes(content)
    return Bundle.open(place)


def refuse_other(place: Path) -> None:
    """Refuse to replace a folder or a file that is not a bundle.

    Raises:
        UserError: ``place`` holds something else.
    """
    if place.is_dir():
        wrong = place.suffix == SUFFIX or (any(place.iterdir()) and not (place / MANIFEST).exists())
    else:
        wrong = place.exists() and place.suffix != SUFFIX
    if wrong:
        raise UserError(f"{place} exists and is no bundle; choose another --out")


@contextlib.contextmanager
def building(path: str | Path) -> Iterator[None]:
    """Hold the lock of a bundle's path while it is built; a second build of it waits.

    The kernel releases the lock when a build is killed, so it never has to be removed by hand.
    """
    key = hashlib.sha256(str(Path(path).absolute()).encode()).hexdigest()[:16]
    name = Path(tempfile.gettempdir()) / f"medisseg-build-{os.getuid()}-{key}.lock"
    import fcntl

    with open(name, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another build of {path}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _part(place: Path, name: str) -> bytes:
    """Return the bytes of one file of a bundle."""
    if Path(name).name != name:
        raise UserError(f"{place}: part {name!r} points outside the bundle; do not use it")
    try:
        if place.is_dir():
            return (place / name).read_bytes()
        with zipfile.ZipFile(place) as archive:
            return archive.read(name)
    except FileNotFoundError as error:
        what = f"no bundle at {place}" if not place.exists() else f"{place} has no {name}"
        raise UserError(f"{what}; {BUILD}") from error
    except _UNREADABLE as error:
        raise UserError(
            f"{place} is no whole bundle ({error}); copy it again, or {BUILD}"
        ) from error
