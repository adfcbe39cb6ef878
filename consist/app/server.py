"""The page on the network: bound to one address, and serving the pictures of runs alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from importlib.resources import files
from urllib.parse import quote

# before Gradio is imported, which reads it
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import FileResponse
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consist.app.actions import Studio
from consist.app.page import build_page
from consist.errors import ConsistError

LOOPBACK = ("127.0.0.1", "localhost")
PATIENCE = 1  # seconds that open connections have when the server is stopped
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Arial", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Consolas", "Liberation Mono", "monospace")
# text that stands out from its ground as WCAG 2.2 AA asks, and fonts that are there
THEME = gr.themes.Base(primary_hue="blue", neutral_hue="stone", font=SANS, font_mono=MONO).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    block_label_text_color="*neutral_800",
    block_title_text_color="*neutral_800",
    block_radius="10px",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
    color_accent="*primary_600",
)
# a browser asks nothing of any other machine, whatever Gradio has in its page
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


def serve(studio: Studio, host: str, port: int, tell: Callable[[str], None]) -> None:
    """Serves the page until it is interrupted; what is being drawn is stopped then, and kept.

    Args:
        studio: What the page works on.
        host: The address to bind to.
        port: 0 takes any that is free.
        tell: Hears the address of the page once it can be reached.

    Raises:
        ConsistError: The address cannot be bound to.
    """
    server, bound = make_server(studio, host, port)
    tell(f"http://{host}:{bound.getsockname()[1]}")
    try:
        server.run(sockets=[bound])
    finally:
        studio.jobs.close()


def make_server(studio: Studio, host: str, port: int) -> tuple[uvicorn.Server, socket.socket]:
    """A server, and the socket that it is to run on, which accepts already.

    Raises:
        ConsistError: The address cannot be bound to.
    """
    try:
        bound = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConsistError(f"{host}:{port} cannot be bound to: {reason}; try --port") from error
    config = uvicorn.Config(
        build_app(studio, host), log_level="critical", timeout_graceful_shutdown=PATIENCE
    )
    return uvicorn.Server(config), bound


def build_app(studio: Studio, host: str) -> FastAPI:
    """The page and the files of runs; nothing can be uploaded."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/pictures/{name}/{file:path}")
    def picture(name: str, file: str) -> FileResponse:
        try:
            return FileResponse(studio.root.picture(name, file), media_type="image/png")
        except ConsistError as error:
            raise HTTPException(404, str(error)) from None

    @app.get("/archives/{name}")
    def archive(name: str) -> Response:
        try:
            data = studio.root.pack(name)
        except ConsistError as error:
            raise HTTPException(404, str(error)) from None
        return Response(data, media_type="application/zip", headers=_attached(f"{name}.zip"))

    @app.post("/gradio_api/upload")
    def upload() -> None:
        raise HTTPException(403, "this page takes no files")

    app.add_middleware(Guard)
    # a page elsewhere cannot reach this one by a name that it makes point here
    if host in LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    return gr.mount_gradio_app(
        app,
        build_page(studio),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=1,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        theme=THEME,
        css=files("consist.app").joinpath("style.css").read_text(encoding="utf-8"),
        head='<meta name="color-scheme" content="light dark">',
    )


class Guard:
    """Adds the policy to each answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As any ASGI application."""

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        await self.app(scope, receive, guarded)


def _attached(name: str) -> dict[str, str]:
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
