"""The page's routes: three files, one WebSocket, snapshots, status, health and metrics."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from starlette.applications import Starlette
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from deploy.outputs.pixels import square_pixels
from deploy.status import STATE_COLORS, fault_of
from deploy.watch.page.session import Pictures, Player, Session
from medisseg.colors import LESION, css

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
    from starlette.websockets import WebSocket

    from deploy.pipeline.live import Live, View
    from deploy.watch.page.gate import Gate

HERE = Path(__file__).parent
FILES = {"/": "index.html", "/page.js": "page.js"}
MOST_VIEWERS = 16
COOKIE_S = 12 * 3600  # a browser is asked for the token again after so long
TRY_AGAIN_LATER = 1013  # WebSocket close code
SECURITY = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


def make_app(live: Live, gate: Gate, player: Player | None = None) -> ASGIApp:
    """Return the ASGI application behind its gate."""
    pictures = Pictures(live)
    viewers: dict[Session, None] = {}  # the oldest first
    encoding = anyio.CapacityLimiter(1)  # a snapshot takes a core for as long as it is compressed

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        if len(viewers) >= MOST_VIEWERS:
            idle = next((viewer for viewer in viewers if viewer.draws_nothing), None)
            if idle is None:
                await websocket.close(TRY_AGAIN_LATER, f"{MOST_VIEWERS} browsers watch already")
                return
            idle.leave()  # it holds a place, and is no browser
            viewers.pop(idle)
        session = Session(websocket, live, pictures, player)
        viewers[session] = None
        try:
            await session.run()
        finally:
            viewers.pop(session, None)

    async def snapshot(request: Request) -> Response:
        stream = number(request.path_params["stream"])
        if stream is None or stream >= live.streams:
            return PlainTextResponse("there is no such stream", 404)
        wanted = number(request.query_params.get("sequence", ""))
        view = None if wanted is None else pictures.sent(stream, wanted)
        view = view or live.latest(stream)
        if view is None:
            return PlainTextResponse("no picture yet", 404)
        data = await anyio.to_thread.run_sync(png, view, limiter=encoding)
        shown = {"content-disposition": f'attachment; filename="{snapshot_name(view)}"'}
        return Response(data, media_type="image/png", headers=shown)

    async def status(request: Request) -> Response:
        shown = [live.status(stream).to_dict() for stream in range(live.streams)]
        return Response(json.dumps(shown), media_type="application/json")

    async def health(request: Request) -> Response:
        shown = [live.status(stream) for stream in range(live.streams)]
        faults = [fault for fault in map(fault_of, shown) if fault]
        return PlainTextResponse("\n".join(faults or ["ok"]) + "\n", 503 if faults else 200)

    async def metrics(request: Request) -> Response:
        data = await anyio.to_thread.run_sync(live.metrics)
        return Response(data, media_type="text/plain; version=0.0.4; charset=utf-8")

    routes: list[BaseRoute] = [Route(path, _file(name)) for path, name in FILES.items()]
    routes += [
        Route("/page.css", style),
        Route("/snapshot/{stream}.png", snapshot),
        Route("/status", status),
        Route("/healthz", health),
        Route("/metrics", metrics),
        WebSocketRoute("/live", socket),
    ]
    return guarded(Starlette(routes=routes), gate)


def number(text: str) -> int | None:
    """Read a number of at most twelve digits; None where it is something else."""
    return int(text) if re.fullmatch(r"[0-9]{1,12}", text) else None


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return FileResponse(HERE / name)

    return endpoint


async def style(request: Request) -> Response:
    """Answer with the style sheet; its colours of states and lesions are those of the videos."""
    shown = {state.lower(): color.light for state, color in STATE_COLORS.items()}
    variables = [f"--{name}: {css(color)};" for name, color in {"mark": LESION, **shown}.items()]
    sheet = (HERE / "page.css").read_text("utf-8")
    return Response(f":root {{ {' '.join(variables)} }}\n{sheet}", media_type="text/css")


def guarded(app: ASGIApp, gate: Gate) -> ASGIApp:
    """Wrap an application: refused requests end here, every response has the security headers."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await app(scope, receive, send)
            return

        async def protect(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(key.encode(), value.encode()) for key, value in SECURITY.items()]
                own = [pair for pair in message["headers"] if pair[0].decode() not in SECURITY]
                message = {**message, "headers": [*own, *more]}
            await send(message)

        refusal = gate.refusal(scope)
        if scope["type"] == "websocket":
            if refusal:  # before it is accepted: the browser sees 403
                await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
            else:
                await app(scope, receive, send)
            return
        if refusal:
            status, reason = refusal
            await PlainTextResponse(f"{reason}\n", status)(scope, receive, protect)
        elif scope["path"] == "/" and gate.token_in_url(scope):
            await _remember(gate)(scope, receive, protect)
        else:
            await app(scope, receive, protect)

    return guard


def _remember(gate: Gate) -> Response:
    """Redirect to the page without the token in its URL, and set it as a cookie instead."""
    answer = RedirectResponse(".", 303)  # relative: a proxy may serve the page under a path
    # Not "strict": a link from a mail to the page would then arrive without its cookie.
    # Without a path the browser takes the page's own.
    answer.set_cookie(
        gate.cookie,
        gate.token or "",
        path=None,
        httponly=True,
        samesite="lax",
        max_age=COOKIE_S,
    )
    return answer


def snapshot_name(view: View) -> str:
    """Return the file name of a snapshot: source, frame, moment."""
    source = re.sub(r"[^A-Za-z0-9]+", "-", Path(view.status.source).stem).strip("-")[:40]
    moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    return f"medisseg-{source or 'stream'}-frame{view.frame_id:06d}-{moment}.png"


def png(view: View) -> bytes:
    """Return an annotated picture without loss; its text chunks say what it shows."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    for key, value in (
        ("Software", "Med-DisSeg"),
        ("Source", view.status.source),
        ("Frame", view.frame_id),
        ("State", view.status.state),
        ("Engine", view.status.backend),
        ("Settings", json.dumps(view.status.to_dict()["settings"])),
    ):
        said.add_itxt(key, str(value))
    file = io.BytesIO()
    image = Image.fromarray(square_pixels(view.rgb, view.status.aspect))
    image.save(file, "PNG", pnginfo=said, compress_level=1)
    return file.getvalue()
