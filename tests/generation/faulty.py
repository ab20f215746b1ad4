"""A server whose every byte is the test's, in both protocols: it answers as a teacher does until told otherwise."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.generation.servers import chat_body

#: Writes something else than the answer: `fault(server, writer)`.
Fault = Callable[["Faulty", asyncio.StreamWriter], Awaitable[None]]


def http(status: str, body: bytes | str, kind: str = "application/json", **headers: str) -> bytes:
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + content


@dataclass
class Faulty:
    """Answers every prompt with its own name; `when(n, prompt, attempt)` may name a fault instead.

    Args:
        api (`str`): `chat` or `tgi`.
        model (`str`): What it says it serves.
        when (callable): Given the number of the request, the prompt and which attempt at it this is.
    """

    api: str
    model: str
    when: Callable[[int, str, int], Fault | None]
    asked: collections.Counter[str] = field(default_factory=collections.Counter)
    answered: collections.Counter[str] = field(default_factory=collections.Counter)
    url: str = ""
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def requests(self) -> int:
        return sum(self.asked.values())

    def body(self, text: str | None, reason: str | None = None) -> dict[str, Any]:
        if self.api == "chat":
            return chat_body(text, reason or "stop")
        details = {"finish_reason": reason or "eos_token", "generated_tokens": 5, "prefill": [], "tokens": []}
        return {"generated_text": text, "details": details}

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                size = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                sent = await reader.readexactly(int(size[1])) if size else b""
                await self._answer(head, sent.decode(), writer)
                await writer.drain()

    async def _answer(self, head: str, sent: str, writer: asyncio.StreamWriter) -> None:
        if head.startswith("GET"):
            info = {"model_id": self.model, "max_concurrent_requests": 128}
            known = self.api == "tgi" and head.startswith("GET /info")
            writer.write(http("200 OK", json.dumps(info)) if known else http("404 Not Found", ""))
            return
        found = re.search(r"prompt \d+", sent)
        assert found is not None
        prompt = found[0]
        self.asked[prompt] += 1
        fault = self.when(self.requests, prompt, self.asked[prompt])
        if fault is not None:
            await fault(self, writer)
            return
        writer.write(http("200 OK", json.dumps(self.body(f"answer to {prompt}"))))
        await writer.drain()
        self.answered[prompt] += 1


@contextlib.contextmanager
def faulty(server: Faulty, port: int = 0) -> Iterator[Faulty]:
    """Runs it in a thread; at the end every connection is cut."""
    loop = asyncio.new_event_loop()
    started: list[asyncio.Server] = []
    ready = threading.Event()

    async def main() -> None:
        started.append(await asyncio.start_server(server.handle, "127.0.0.1", port, limit=2**24))
        ready.set()

    def run() -> None:
        starting = loop.create_task(main())
        loop.run_forever()
        starting.cancel()

    async def end() -> None:
        started[0].close()
        for writer in server.writers:
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        loop.stop()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    server.url = f"http://127.0.0.1:{started[0].sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop)
        thread.join(10)
        assert not thread.is_alive()
        loop.close()


def status(line: str, body: Any = "", kind: str = "application/json", **headers: str) -> Fault:
    async def fault(server: Faulty, writer: asyncio.StreamWriter) -> None:
        content = body if isinstance(body, str) else json.dumps(body)
        writer.write(http(line, content, kind, **headers))

    return fault


def error(line: str, kind: str, words: str = "words") -> Fault:
    return status(line, {"error": words, "error_type": kind})


def answer(text: str | None, reason: str | None = None) -> Fault:
    async def fault(server: Faulty, writer: asyncio.StreamWriter) -> None:
        writer.write(http("200 OK", json.dumps(server.body(text, reason))))

    return fault


async def reset_in_the_middle(server: Faulty, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{")
    await writer.drain()
    writer.transport.abort()


async def reset_at_once(server: Faulty, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def hang(server: Faulty, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def slow_drip(server: Faulty, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n")
    for _ in range(200):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


async def no_http(server: Faulty, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
    writer.close()


async def cut_chunks(server: Faulty, writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"cho')
    await writer.drain()
    writer.close()


async def truncated_json(server: Faulty, writer: asyncio.StreamWriter) -> None:
    whole = json.dumps(server.body("half of an answer"))
    writer.write(http("200 OK", whole[: len(whole) // 2]))


async def deep_json(server: Faulty, writer: asyncio.StreamWriter) -> None:
    writer.write(http("200 OK", "[" * 100_000))


async def wrong_content_type(server: Faulty, writer: asyncio.StreamWriter) -> None:
    """The right answer under the wrong name: it is an answer."""
    prompt = server.asked.most_common()[-1][0]
    writer.write(http("200 OK", json.dumps(server.body(f"answer to {prompt}")), "text/html"))


class Endless:
    """A body without an end: `sent` says how much of it was taken."""

    def __init__(self, chunked: bool) -> None:
        self.chunked, self.sent = chunked, 0

    async def __call__(self, server: Faulty, writer: asyncio.StreamWriter) -> None:
        length = "transfer-encoding: chunked" if self.chunked else "content-length: 100000000"
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{length}\r\n\r\n".encode())
        block = b"x" * 65536
        with contextlib.suppress(ConnectionError):
            while self.sent < 100_000_000:
                writer.write(b"%x\r\n%b\r\n" % (len(block), block) if self.chunked else block)
                await writer.drain()
                self.sent += len(block)
        writer.transport.abort()
