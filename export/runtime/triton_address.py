"""Where a served model is: ``grpc://HOST:8001/NAME``, as ``--model`` takes it."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from medisseg.checkpoint import SERVED
from medisseg.errors import UserError
from medisseg.schema import Json

PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 8000}
EXAMPLE = "grpc://gpu-rack:8001/edge-polyp"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Address:
    """A model on a server.

    Attributes:
        scheme: "grpc", "grpcs" (TLS), "http" or "https".
        host: Name or address of the machine.
        port: Its port, 1 to 65535.
        name: The model's name there.
        version: Version's number; 0 for the one that the server serves.
        deadline_ms: How long one answer may take, in milliseconds.
        ca: File of the certificates that the server's is checked with (TLS); None for the system's.
        cert, key: Files of our own certificate and its key, where the server asks for them (TLS).
        shared_memory: Whether images and answers may go through memory on the same machine.
    """

    scheme: str
    host: str
    port: int
    name: str
    version: int = 0
    deadline_ms: float = 5000.0
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    shared_memory: bool = True

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Raises:
            UserError: A part is absent, unknown or out of range, or a file is not there.

        Example:
            >>> Address.parse("grpcs://gpu-rack/edge-polyp/3?deadline_ms=500&ca=ca.pem").version
            3
        """
        try:
            parts = urlsplit(text)
            port = parts.port or PORTS[parts.scheme]
        except (ValueError, KeyError) as error:
            raise UserError(f"--model {text} is no server's address ({error}); {_how()}") from error
        words = [unquote(word) for word in parts.path.split("/") if word]
        version = words[1] if len(words) == 2 else "0"
        if not parts.hostname or len(words) not in (1, 2) or not NAME.fullmatch(words[0]):
            raise UserError(f"--model {text} does not name a host and a model; {_how()}")
        if not re.fullmatch(r"\d{1,9}", version):
            raise UserError(f"--model {text}: the version is {version!r}; expected a number")
        if parts.username or parts.password or parts.fragment:
            raise UserError(f"--model {parts.hostname}: no user and no # belongs here; {_how()}")
        made = cls(parts.scheme, parts.hostname, port, words[0], int(version))
        return dataclasses.replace(made, **_options(parts.query, made.tls))

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme.endswith("s")

    @property
    def grpc(self) -> bool:
        """Whether it speaks gRPC; else HTTP."""
        return self.scheme.startswith("grpc")

    @property
    def place(self) -> str:
        """``HOST:PORT``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether the host is this machine's loopback, where shared memory may be tried."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        version = f"/{self.version}" if self.version else ""
        return f"{self.scheme}://{self.place}/{self.name}{version}"


def _options(query: str, tls: bool) -> Json:
    found: Json = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key == "deadline_ms":
            if not re.fullmatch(r"\d{1,6}(\.\d+)?", value) or not float(value) >= 1:
                raise UserError(f"deadline_ms is {value!r}; expected milliseconds from 1 to 999999")
            found[key] = float(value)
        elif key == "shared_memory":
            if value not in ("on", "off"):
                raise UserError(f"shared_memory is {value!r}; expected on or off")
            found[key] = value == "on"
        elif key in ("ca", "cert", "key"):
            if not tls:
                raise UserError(f"{key}={value} goes with grpcs:// or https://; this is neither")
            if not Path(value).is_file():
                raise UserError(f"{key}={value} is no file; expected one in PEM format")
            found[key] = Path(value)
        else:
            raise UserError(
                f"unknown {key!r} in the server's address; it takes deadline_ms, shared_memory, "
                "ca, cert, key"
            )
    if ("cert" in found) != ("key" in found):
        raise UserError("cert and key go together in the server's address; one of them is absent")
    return found


def _how() -> str:
    return f"expected {'://, '.join(SERVED)}://HOST:PORT/MODEL, as in {EXAMPLE}"
