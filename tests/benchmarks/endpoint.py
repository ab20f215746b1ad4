"""An endpoint for benchmarks: a fixed service time, a hard cap (429 beyond), faults on request, and hardly any work.

`running(...)` starts one in a process of its own; GET on its address gives the counters.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import random
import selectors
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.queues import Queue
from typing import Any

ANSWER = {
    "id": "1", "object": "chat.completion", "created": 0, "model": "m", "system_fingerprint": "",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "An answer."}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
}  # fmt: skip
#: The mix of the tables: shares of 503 pages, resets, half JSON and hangs.
MIX = (0.05, 0.02, 0.01, 0.002)
HANGS = (0.0, 0.0, 0.0, 0.002)
NONE = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Behaviour:
    """How an endpoint answers.

    Args:
        cap: Requests that it bears at once, up to 900 or so: `select` knows 1,024 sockets.
        service: Seconds per answer.
        jitter: Share of `service` by which it varies either way.
        faults: Shares of 503 pages, resets, half JSON and hangs.
        mark: The number of answers from which `marked` counts.
        seed: Draws faults and jitter. Hangs are drawn apart: by one seed the same requests hang, whatever else fails.
    """

    cap: int
    service: float
    jitter: float = 0.0
    faults: tuple[float, float, float, float] = NONE
    mark: int = 500
    seed: int = 0


@dataclass
class Counters:
    requests: int = 0
    refused: int = 0
    good: int = 0
    in_flight: int = 0
    peak: int = 0
    first: float = 0.0
    last: float = 0.0
    marked_at: float = 0.0
    marked_requests: int = 0
    marked_refused: int = 0


def http(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Connection(asyncio.Protocol):
    """The least HTTP that a benchmark needs."""

    good, refusal = http(json.dumps(ANSWER).encode()), http(b'{"error":"full","error_type":"overloaded"}', "429 Busy")
    down, half = http(b"<h1>503</h1>", "503 Down"), http(b'{"choices": [{"mess')

    def __init__(
        self, behaviour: Behaviour, counters: Counters, rng: random.Random, hangs: random.Random, recent: deque[float]
    ) -> None:  # fmt: skip
        self.behaviour, self.counters, self.rng, self.hangs, self.recent = behaviour, counters, rng, hangs, recent
        self.buffer, self.last = b"", False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):
            self.buffer = rest
            asked = head.split()[1].decode()
            before = sum(when <= float(asked[8:]) for when in self.recent) if asked.startswith("/before/") else 0
            past = self.counters.good - len(self.recent)
            pages = {
                b"GET / ": asdict(self.counters),
                b"GET /before/": past + before,
                b"GET /v1/models ": {"object": "list", "data": [{"id": "m"}]},
            }
            page = next((page for start, page in pages.items() if head.startswith(start)), {})
            self.transport.write(http(json.dumps(page).encode()))
            return
        self.last = b"connection: close" in head.lower()
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(rest) >= size:
            self.buffer = rest[size:]
            self.request()

    def write(self, answer: bytes) -> None:
        self.transport.write(answer)
        if self.last:
            self.transport.close()

    def request(self) -> None:
        counters, behaviour = self.counters, self.behaviour
        counters.requests += 1
        counters.first = counters.first or time.monotonic()
        if counters.in_flight >= behaviour.cap:
            counters.refused += 1
            self.write(self.refusal)
            return
        counters.in_flight += 1
        counters.peak = max(counters.peak, counters.in_flight)
        service = behaviour.service
        if behaviour.jitter:
            service *= 1 + behaviour.jitter * self.rng.uniform(-1, 1)
        asyncio.get_running_loop().call_later(service, self.answer)

    def answer(self) -> None:
        counters, behaviour = self.counters, self.behaviour
        counters.in_flight -= 1
        if self.transport.is_closing():  # whoever asked is gone
            return
        down, reset, half, hang = behaviour.faults
        if self.hangs.random() < hang:
            return
        drawn = self.rng.random()
        if drawn < down:
            self.write(self.down)
        elif drawn < down + reset:
            self.transport.abort()
        elif drawn < down + reset + half:
            self.write(self.half)
        else:
            self.write(self.good)
            counters.good += 1
            counters.last = time.monotonic()
            self.recent.append(counters.last)
            if counters.good == behaviour.mark:
                counters.marked_at, counters.marked_requests = counters.last, counters.requests
                counters.marked_refused = counters.refused


def _serve(ports: Queue[list[int]], behaviours: list[Behaviour]) -> None:
    async def main() -> None:
        loop, found = asyncio.get_running_loop(), []
        for behaviour in behaviours:
            drawn = Counters(), random.Random(behaviour.seed), random.Random(f"hangs {behaviour.seed}")
            recent = deque[float](maxlen=4096)
            make = lambda b=behaviour, d=drawn, w=recent: Connection(b, *d, w)  # noqa: E731
            server = await loop.create_server(make, "127.0.0.1", 0, backlog=4096)
            found.append(server.sockets[0].getsockname()[1])
        ports.put(found)
        await asyncio.Event().wait()

    # Epoll waits whole milliseconds, so that every answer would be half a millisecond late; select waits microseconds.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(main())


@contextlib.contextmanager
def running(*behaviours: Behaviour) -> Iterator[list[str]]:
    """Addresses of endpoints that one other process serves, one per behaviour."""
    context = multiprocessing.get_context("spawn")
    ports: Queue[list[int]] = context.Queue()
    process = context.Process(target=_serve, args=(ports, list(behaviours)))
    process.start()
    try:
        yield [f"http://127.0.0.1:{port}" for port in ports.get(timeout=60)]
    finally:
        process.kill()
        process.join()


def answered_before(url: str, when: float) -> int:
    """Good answers that had been sent at a time of this machine's monotonic clock."""
    import httpx2

    return int(httpx2.get(f"{url}/before/{when!r}").json())


def counters_of(url: str) -> Counters:
    import httpx2

    return Counters(**httpx2.get(url).json())
