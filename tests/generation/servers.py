"""Servers on loopback, with real sockets, that behave and misbehave as told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response


def chat_body(text: str | None, reason: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m", "system_fingerprint": "",
        "choices": [
            {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text, **message}}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    }  # fmt: skip


def echo(body: dict[str, Any]) -> str:
    """A deterministic teacher: everything that it was sent is in its answer."""
    asked = "|".join(f"{m['role']}:{m['content']}" for m in body["messages"])
    return f"{asked}|seed={body['seed']}|t={body['temperature']}"


@dataclass
class Teacher:
    """What a double was asked, and how it answers: `behave(n, body)` gives a response or None for an echo."""

    behave: Callable[[int, dict[str, Any]], Response | Awaitable[Response] | None] | None = None
    delay: float = 0.0
    cap: int | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    refused: int = 0
    served: int = 0
    url: str = ""

    async def __call__(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if self.cap is not None and self.in_flight >= self.cap:
            self.refused += 1
            return JSONResponse({"error": "Model is overloaded", "error_type": "overloaded"}, 429)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            special = self.behave(len(self.bodies), body) if self.behave else None
            if special is not None and not isinstance(special, Response):
                special = await special
            if special is None:
                self.served += 1
            return special or JSONResponse(chat_body(echo(body)))
        finally:
            self.in_flight -= 1


@contextlib.contextmanager
def serve_app(app: Any, port: int = 0, **settings: Any) -> Iterator[str]:
    """An ASGI application on loopback, by a real server in a thread; gives its address."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    scheme = "https" if "ssl_certfile" in settings else "http"
    _until(lambda: server.started)
    try:
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listener.close()


@contextlib.contextmanager
def serve(teacher: Teacher, port: int = 0, **settings: Any) -> Iterator[Teacher]:
    with serve_app(_asgi(teacher), port, **settings) as teacher.url:
        yield teacher


def _asgi(teacher: Teacher) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        with contextlib.suppress(ClientDisconnect):
            response = await teacher(request) if scope["path"] == "/v1/chat/completions" else Response(status_code=404)
            await response(scope, receive, send)

    return app


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
