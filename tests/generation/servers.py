"""Servers on loopback, with real sockets, that behave and misbehave as told."""

from __future__ import annotations

import asyncio
import contextlib
import json
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
def serve(teacher: Teacher, port: int = 0) -> Iterator[Teacher]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(_asgi(teacher), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    teacher.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    _until(lambda: server.started)
    try:
        yield teacher
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listener.close()


def _asgi(teacher: Teacher) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        with contextlib.suppress(ClientDisconnect):
            response = await teacher(request) if scope["path"] == "/v1/chat/completions" else Response(status_code=404)
            await response(scope, receive, send)

    return app


@contextlib.contextmanager
def raw_server(answer: Callable[[int, asyncio.StreamWriter], Awaitable[None]]) -> Iterator[str]:
    """A server whose every byte is the test's; `answer(n, writer)` handles the n-th request."""
    loop = asyncio.new_event_loop()
    count = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                size = int(head.split("content-length:")[1].split("\r\n")[0])
                await reader.readexactly(size)
                count += 1
                await answer(count, writer)
                if writer.is_closing():
                    return
                await writer.drain()

    ready = threading.Event()
    box: list[Any] = []

    async def main() -> None:
        box.append(await asyncio.start_server(handle, "127.0.0.1", 0))
        ready.set()

    starting = loop.create_task(main())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    assert ready.wait(10) and not starting.cancelled()
    try:
        yield f"http://127.0.0.1:{box[0].sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        loop.call_soon_threadsafe(loop.call_later, 0.05, loop.stop)
        thread.join(10)


def http_json(body: Any, status: str = "200 OK", kind: str = "application/json") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
