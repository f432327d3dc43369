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
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from export.model_info import BACKENDS, PRECISIONS, ModelInfo
from export.signing import check, public_key, sign
from medisseg.checkpoint import BUNDLE_MANIFEST as MANIFEST
from medisseg.checkpoint import BUNDLE_SUFFIX as SUFFIX
from medisseg.checkpoint import LONGEST_SIDE, Checkpoint
from medisseg.convention import COLORS, InputConvention
from medisseg.errors import UserError
from medisseg.files import replacing
from medisseg.labels import read_labels
from medisseg.schema import Json
from medisseg.untrusted import read_bytes

FORMAT = 1
ONNX_PART = "network.onnx"  # the graph, in every bundle
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
MOST_PART = 8 << 30  # bytes of one part
MOST_MANIFEST = 16 << 20
SIGNATURE, MOST_SIGNATURE = "manifest.sig", 4096
MOST_BATCH = 1024
MOST_EXPANSION = 4  # times its archive that a part may be: weights hardly compress
# Type of every field that is read; a manifest may hold others.
_TYPES: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "files": dict,
    "backend": str,
    "backend_version": str,
    "precision": str,
    "fp16_share": (int, float),
    "compute_capabilities": list,
    "size": list,
    "batch": list,
    "threshold": (int, float),
    "classes": int,
    "convention": dict,
    "verification": dict,
    "tolerance": (int, float),
    "checkpoint": dict,
    "command": str,
    "digest": str,
}


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest was checked; parts are checked as they are read.

    Attributes:
        path: The folder or the ``.mdsg`` file.
        manifest: The contents of ``manifest.json``.
        trusted_key: The public key that its signature was checked with; None where none was named.

    Example:
        >>> bundle = Bundle.open("runs/edge.mdsg")
        >>> bundle.manifest["verification"]["dice_agreement"]
    """

    path: Path
    manifest: Json
    trusted_key: Path | None = None

    @classmethod
    def open(cls, path: str | Path, trusted_key: str | Path | None = None) -> Bundle:
        """Read and check the manifest of a bundle, and with a public key who signed it.

        Raises:
            UserError: No bundle, an empty or damaged one, or one of a newer format; with a key also
                one that is not signed, or by somebody else.
        """
        place, key = Path(path), None if trusted_key is None else Path(trusted_key)
        text = _part(place, MANIFEST, MOST_MANIFEST)
        if key is not None:
            _check_signature(place, text, key)
        return cls(place, read_manifest(text, str(place)), key)

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
    def model_info(self) -> ModelInfo:
        """What the network is, for an engine."""
        manifest = self.manifest
        raw = manifest.get("raw_frames") or {}
        return ModelInfo(
            convention=InputConvention.from_dict(manifest["convention"]),
            threshold=float(manifest["threshold"]),
            classes=int(manifest["classes"]),
            labels=read_labels(manifest.get("labels", ()), int(manifest["classes"])),
            max_batch=int(manifest["batch"][-1]),
            uncertainty=bool(manifest.get("uncertainty")),
            frame_size=tuple(raw["size"]) if raw else None,
            frame_color=raw.get("color", "RGB"),
        )


def read_manifest(text: bytes, place: str, name: str = MANIFEST) -> Json:
    """Return a manifest, checked.

    Args:
        text: JSON as it was written.
        place: The bundle or the server that has it, for errors.
        name: Of the file or parameter, for errors.

    Raises:
        UserError: No JSON, changed since it was written, of a newer format, or with wrong fields.
    """
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: {name} is not JSON ({error}); build it again") from error
    if not isinstance(manifest, dict) or manifest.get("digest") != digest(manifest):
        raise UserError(
            f"{place}: {name} was changed or damaged since it was built; build it again"
        )
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{place}: bundle format {manifest.get('format')}, this version reads {FORMAT}; "
            f"build it again: {manifest.get('command')}"
        )
    missing = [key for key in _TYPES if key not in manifest]
    known = manifest.get("backend") in BACKENDS and manifest.get("precision") in PRECISIONS
    if missing or not known:
        lacking = ", ".join(missing) or "a known backend and precision"
        raise UserError(f"{place}: {name} lacks {lacking}; build it again")
    wrong = _wrong_field(manifest)
    if wrong:
        raise UserError(f"{place}: {name} has a wrong {wrong}; build it again")
    return manifest


def _wrong_field(manifest: Json) -> str:
    """Name the first field of a wrong type or beyond the bounds; empty where there is none."""
    for name, kinds in _TYPES.items():
        if not isinstance(manifest[name], kinds) or isinstance(manifest[name], bool):
            return name
    if not all(isinstance(value, str) for value in manifest["files"].values()):
        return "files"
    if not all(isinstance(value, str) for value in manifest["compute_capabilities"]):
        return "compute_capabilities"
    for name, length, most in (("size", 2, LONGEST_SIDE), ("batch", 3, MOST_BATCH)):
        values = manifest[name]
        if len(values) != length or not all(
            type(value) is int and 1 <= value <= most for value in values
        ):
            return name
    try:
        convention = InputConvention.from_dict(manifest["convention"])
        info = Checkpoint("bundle", 1, manifest["classes"], convention)
        replace(info, threshold=manifest["threshold"]).check()
        read_labels(manifest.get("labels", ()), manifest["classes"])
        raw = manifest.get("raw_frames")
        if raw is not None:
            height, width = raw["size"]
            if not (type(height) is type(width) is int and raw.get("color", "RGB") in COLORS):
                return "raw_frames"
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        return f"field ({error})"
    return ""


def digest(manifest: Mapping[str, object]) -> str:
    """Return the SHA-256 of a manifest without its own ``digest``."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write_bundle(
    path: str | Path,
    parts: Mapping[str, bytes],
    facts: Mapping[str, object],
    key: str | Path | None = None,
) -> Bundle:
    """Write a bundle beside ``path`` and rename it into place.

    Args:
        path: A folder, or a file that ends in ``.mdsg`` for one zip.
        parts: File name to contents.
        facts: The manifest without ``files``, ``format`` and ``digest``.
        key: Private key to sign it with; None leaves it unsigned.

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
    if key is not None:
        whole[SIGNATURE] = sign(whole[MANIFEST], key)
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


def _check_signature(place: Path, manifest: bytes, key: Path) -> None:
    public_key(key)  # a wrong key is said before a missing signature
    try:
        signature = _part(place, SIGNATURE, MOST_SIGNATURE)
    except UserError as error:
        raise UserError(
            f"{place} is not signed, and --trusted-key {key} was named; use a signed one, or build "
            "it with --sign"
        ) from error
    check(manifest, signature, key, place)


def refuse_other(place: Path) -> None:
    """Refuse to replace a folder or a file that is not a bundle, and a place that cannot be.

    Raises:
        UserError: ``place`` holds something else, or would lie inside a file.
    """
    for parent in place.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"cannot write {place}: {parent} is a file; choose another --out")
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
    import fcntl

    with open(_lock_file(key), "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another build of {path}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _lock_file(key: str) -> int:
    """Open a lock in a folder that is the user's own: in a shared one others could lay a link."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "medisseg" / "locks"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # no home to write to
        folder = Path(tempfile.gettempdir()) / f"medisseg-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        raise UserError(f"{folder} is not yours; set XDG_CACHE_HOME to a folder of yours")
    flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    path = folder / f"build-{key}.lock"
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:  # a link or a folder in its place, or not ours to write
        raise UserError(f"cannot open the lock {path} ({error.strerror}); remove it") from error


def _part(place: Path, name: str, most: int = MOST_PART) -> bytes:
    """Return one file of a bundle, refusing more than ``most`` bytes."""
    if Path(name).name != name:
        raise UserError(f"{place}: part {name!r} points outside the bundle; do not use it")
    try:
        if place.is_dir():
            return read_bytes(place / name, most)
        if place.exists() and not place.is_file():
            raise UserError(f"{place} is no regular file; expected a bundle")
        with zipfile.ZipFile(place) as archive:
            claimed = archive.getinfo(name).file_size
            if claimed > min(most, MOST_EXPANSION * place.stat().st_size):
                raise UserError(
                    f"{place}: {name} claims {claimed} bytes, too much for an archive of "
                    f"{place.stat().st_size}; do not use it"
                )
            with archive.open(name) as file:
                content = file.read(claimed + 1)
            if len(content) != claimed:
                raise zipfile.BadZipFile(f"{name} has another length than it claims")
            return content
    except FileNotFoundError as error:
        what = f"no bundle at {place}" if not place.exists() else f"{place} has no {name}"
        raise UserError(f"{what}; {BUILD}") from error
    except _UNREADABLE as error:
        raise UserError(
            f"{place} is no whole bundle ({error}); copy it again, or {BUILD}"
        ) from error
