"""Ed25519 signatures of bundles (RFC 8032): who built it, where SHA-256 says only what was built.

The signature is over ``manifest.json``, byte for byte; the manifest holds the SHA-256 of every
part. Keys are PEM files: ``medisseg build new-key FILE`` writes the private one to FILE and the
public one, which whoever opens bundles needs, to FILE.pub.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import TYPE_CHECKING

from medisseg.errors import UserError
from medisseg.untrusted import read_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

MOST_KEY = 64 << 10  # bytes of a key file


def make_key(path: str | Path) -> Path:
    """Make a key pair; return the path of the public key, ``path`` with ``.pub`` behind it.

    Raises:
        UserError: One of the two files exists, or cannot be written.
    """
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private, public = Path(path), Path(f"{path}.pub")
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    known = key.public_key().public_bytes(
        forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo
    )
    for place, content, mode in ((private, secret, 0o600), (public, known, 0o644)):
        try:
            with open(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode), "wb") as file:
                file.write(content)
        except FileExistsError as error:
            raise UserError(f"{place} exists; choose another name for the key") from error
        except OSError as error:
            raise UserError(f"cannot write {place} ({error.strerror})") from error
    return public


def private_key(path: str | Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        UserError: No such file, open to other users, or no Ed25519 private key in PEM.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read(path)
    if os.name == "posix" and (mode := os.stat(path).st_mode & 0o777) & 0o077:
        raise UserError(
            f"{path} is a private key and open to other users (mode {mode:o}); chmod 600 it, and "
            "make a new one if others may have read it"
        )
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError) as error:
        raise _no_key(path, "private", error) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private")
    return key


def public_key(path: str | Path) -> Ed25519PublicKey:
    """Read a public key.

    Raises:
        UserError: No such file, or no Ed25519 public key in PEM.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read(path)
    try:
        key = load_pem_public_key(content)
    except (ValueError, TypeError) as error:
        raise _no_key(path, "public", error) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public")
    return key


def sign(content: bytes, key: str | Path) -> bytes:
    """Return the signature of ``content`` as one line of base64."""
    return base64.b64encode(private_key(key).sign(content)) + b"\n"


def check(content: bytes, signature: bytes, key: str | Path, what: object) -> None:
    """Raise UserError unless ``signature`` is one of ``content`` by the owner of ``key``."""
    from cryptography.exceptions import InvalidSignature

    try:
        public_key(key).verify(base64.b64decode(signature, validate=False), content)
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise UserError(
            f"{what} is not signed by the owner of {key}; do not use it, or name the key of who "
            "built it"
        ) from error


def same_owner(private: str | Path, public: str | Path) -> bool:
    """Return whether two keys belong together."""
    return private_key(private).public_key() == public_key(public)


def _read(path: str | Path) -> bytes:
    try:
        return read_bytes(path, MOST_KEY)
    except OSError as error:
        raise UserError(
            f"cannot read the key {path} ({error.strerror}); make one: medisseg build new-key FILE"
        ) from error


def _no_key(path: str | Path, kind: str, error: Exception | None = None) -> UserError:
    reason = f" ({error})" if error else ""
    return UserError(
        f"{path} is no {kind} key{reason}; expected Ed25519 in PEM, as medisseg build "
        "new-key writes"
    )
