"""Who may see the page: the address it listens on, host names, origins, the token.

Bound to loopback the page is open to this machine. That is safe only as long as no web site can
speak to it through the browser: the Host header must name this machine (a site that rebinds its own
name to 127.0.0.1 is refused), and an Origin must be the page's own. On any other address a token is
demanded as well; it comes once in the URL and stays in a cookie that scripts cannot read.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from medisseg.errors import UserError

SHORTEST_TOKEN = 12
MOST_FAILURES, FAILURES_S = 10, 60.0  # wrong tokens of one address, and for how long they count
MOST_STRANGERS = 100  # wrong tokens of all addresses: a proxy's client can claim any
MOST_ADDRESSES = 1024  # whose failures are remembered
Scope = MutableMapping[str, Any]  # of ASGI
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Address:
    """Where the page listens; ``host`` without brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, given: str) -> Address:
        """Read "HOST:PORT", "[V6]:PORT" or "PORT" (on loopback).

        Raises:
            UserError: It is none of these.
        """
        match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%\w]+)\]:|([^:\[\]/@\s]*):)?(\d{1,5})", given)
        if not match or int(match[3]) > 65535:
            raise UserError(f"--serve is {given!r}; expected HOST:PORT, such as 127.0.0.1:8080")
        return cls(match[1] or match[2] or "127.0.0.1", int(match[3]))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host.lower() == "localhost" or _loopback_ip(self.host)

    @property
    def everywhere(self) -> bool:
        """Whether it means every address of this machine."""
        found = _ip(self.host)
        return found is not None and found.is_unspecified

    def netloc(self, port: int) -> str:
        """Return host and port as in a URL; "everywhere" as this machine's name."""
        host = socket.gethostname() if self.everywhere else self.host
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Gate:
    """Decides on every request.

    Args:
        address: Where the page listens.
        token: What the page demands. Off loopback one is made where none is given.
        names: Further host names of the page, with commas between them; with a port where a proxy
            that serves it has another than 80 or 443.

    Raises:
        UserError: The token is too short, or holds what a URL cannot.
    """

    def __init__(
        self, address: Address, token: str | None = None, names: str | None = None
    ) -> None:
        if token is not None and not re.fullmatch(rf"[\w.~-]{{{SHORTEST_TOKEN},200}}", token, re.A):
            raise UserError(
                f"--token has {len(token)} characters; expected {SHORTEST_TOKEN} to 200 of "
                "letters, digits and . _ ~ -"
            )
        if token is None and not address.loopback:
            token = secrets.token_urlsafe(24)
        self.address, self.token, self.port = address, token, address.port
        given = [name.strip().lower() for name in (names or "").split(",") if name.strip()]
        for name in given:
            if not re.fullmatch(r"[a-z0-9_][a-z0-9_.-]{0,252}(:\d{1,5})?", name):
                raise UserError(
                    f"--host-name is {name!r}; expected names such as tower.lan or tower.lan:8443"
                )
        # A proxy may put its own Host in front of the page; the Origin stays the browser's.
        self._origins = frozenset(given)
        self._names = {"localhost", address.host.lower(), *(name.split(":")[0] for name in given)}
        self._failures: OrderedDict[str, dict[bytes, float]] = OrderedDict()
        self._all_failures: deque[float] = deque(maxlen=MOST_STRANGERS)
        self._known: OrderedDict[str, None] = OrderedDict()  # addresses that gave the token

    def look_up_names(self) -> None:
        """Find out this machine's own names, once, in a thread: a name server may take seconds."""

        def look_up() -> None:
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

        if not self.address.loopback:
            threading.Thread(target=look_up, name="host names", daemon=True).start()

    @property
    def url(self) -> str:
        """The address to open, with the token where one is demanded."""
        query = f"?token={quote(self.token)}" if self.token else ""
        return f"http://{self.address.netloc(self.port)}/{query}"

    @property
    def cookie(self) -> str:
        """Name of the cookie; with the port, because browsers share cookies between ports."""
        return f"medisseg-{self.port}"

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return (status, reason) of a request that must be refused, None for a good one."""
        headers = _headers(scope["headers"])
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not self._knows(hosts[0]):
            return 403, "this name is not this page's: open it by the address that was printed"
        for origin in headers.get("origin", []):
            if _netloc(origin) not in (hosts[0].lower(), *self._origins):
                return 403, "another site's page asked for this"
        if any(site not in ("same-origin", "none") for site in headers.get("sec-fetch-site", [])):
            # A link may lead here; a picture, a script or a fetch of another site may not: six
            # snapshots at a time starved the engine of its cores.
            opened = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
            if scope["path"] != "/" or opened != (["navigate"], ["document"]):
                return 403, "another site's page asked for this"
        return self._token_refusal(scope, headers) if self.token else None

    def _token_refusal(self, scope: Scope, headers: dict[str, list[str]]) -> tuple[int, str] | None:
        assert self.token is not None
        client = scope.get("client")
        address = str(client[0]) if client else ""
        failures, now = self._failures.setdefault(address, {}), time.monotonic()
        self._failures.move_to_end(address)
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)
        for guess in [guess for guess, when in failures.items() if now - when > FAILURES_S]:
            del failures[guess]
        while self._all_failures and now - self._all_failures[0] > FAILURES_S:
            self._all_failures.popleft()
        flooded = len(self._all_failures) >= MOST_STRANGERS and address not in self._known
        if len(failures) >= MOST_FAILURES or flooded:
            return 429, f"too many wrong tokens from this address; wait {FAILURES_S:.0f} s"
        given = self._given(scope, headers)[:MOST_FAILURES]
        if any(hmac.compare_digest(one.encode(), self.token.encode()) for one in given):
            self._known[address] = None
            if len(self._known) > MOST_ADDRESSES:
                self._known.popitem(last=False)
            return None
        # One wrong token counts once: a browser with the cookie of an earlier run asks for ever.
        for one in given:
            guess = hashlib.sha256(one.encode()).digest()
            if guess not in failures:
                self._all_failures.append(now)
            failures[guess] = now
        return 401, "this page needs its token: open the whole address that was printed"

    def token_in_url(self, scope: Scope) -> bool:
        """Return whether a request carries the token where it should not stay."""
        return bool(self.token) and b"token=" in scope["query_string"]

    def _knows(self, host: str) -> bool:
        # urlsplit does not mind nonsense; what is left of it is not a name of ours.
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._names:
            return True
        if self.address.loopback:
            return _loopback_ip(name)
        # A site can point its own name here, but never a number.
        return _ip(name) is not None

    def _given(self, scope: Scope, headers: dict[str, list[str]]) -> list[str]:
        found = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        for value in headers.get("authorization", []):
            scheme, _, rest = value.partition(" ")
            found += [rest.strip()] if scheme.lower() == "bearer" else []
        for value in headers.get("cookie", []):
            # http.cookies takes 5 s for 15 KB of backslashes (CVE-2024-7592), in the event loop.
            pairs = (pair.partition("=") for pair in value.split(";"))
            found += [value.strip() for name, _, value in pairs if name.strip() == self.cookie]
        return found


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # a bracket without its other half
        return None


def _headers(pairs: Headers) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _loopback_ip(host: str) -> bool:
    found = _ip(host)
    return found is not None and found.is_loopback
