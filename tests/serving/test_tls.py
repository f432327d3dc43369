"""A server that is asked over TLS, with a certificate of our own authority."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from export.runtime import load_engine
from medisseg.errors import UserError


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a self-signed certificate for this machine and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    called = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(called).issuer_name(called).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    public, private = folder / f"{name}.pem", folder / f"{name}.key"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return public, private


def test_only_a_server_of_our_authority_is_believed(serve: Any, tmp_path: Path) -> None:
    public, private = certificate(tmp_path, "rack")
    stranger, _ = certificate(tmp_path, "stranger")
    server = serve(
        None, "--grpc-use-ssl=1", f"--grpc-server-cert={public}", f"--grpc-server-key={private}"
    )
    images = np.zeros((1, 3, 256, 256), np.float32)
    with load_engine(server.url("grpcs", f"?ca={public}")) as engine:
        assert engine.infer(images).shape == (1, 1, 256, 256)
    for wrong in (
        server.url("grpcs", f"?ca={stranger}"),
        server.url("grpcs"),  # the system's authorities do not know it
        server.url("grpc", "?deadline_ms=2000"),
    ):
        with pytest.raises(UserError) as raised:
            load_engine(wrong)
        assert "\n" not in str(raised.value)
