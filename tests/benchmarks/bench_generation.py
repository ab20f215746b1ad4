"""How near the engine comes to what an endpoint can bear, and what that costs the client.

A server process of our own answers after a fixed time and refuses what exceeds its cap. Everything is a ratio taken in
one run: `python -m tests.benchmarks.bench_generation [--prompts 2000] [--cap 64] [--service 0.25]`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import resource
import time
from multiprocessing.queues import Queue
from typing import Any

from datasets import Dataset

from persyn_hf.generation.generate import generate_parallel, persyn_generate

ANSWER = {
    "id": "1", "object": "chat.completion", "created": 0, "model": "m", "system_fingerprint": "",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "An answer."}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
}  # fmt: skip


def http(body: bytes, status: str = "200 OK") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    )


class Server(asyncio.Protocol):
    """The least HTTP that a benchmark needs; `state` is shared by all connections."""

    state: dict[str, Any]
    good, refusal = http(json.dumps(ANSWER).encode()), http(b'{"error":"full","error_type":"overloaded"}', "429 Busy")
    down, half = http(b"<h1>503</h1>", "503 Down"), http(b'{"choices": [{"mess')

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):
            self.buffer = rest
            self.transport.write(http(json.dumps({k: v for k, v in self.state.items() if k != "rng"}).encode()))
            return
        size = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(rest) >= size:
            self.buffer = rest[size:]
            self.request()

    def request(self) -> None:
        state = self.state
        state["requests"] += 1
        if state["in_flight"] >= state["cap"]:
            state["refused"] += 1
            self.transport.write(self.refusal)
            return
        state["in_flight"] += 1
        asyncio.get_running_loop().call_later(state["service"], self.answer)

    def answer(self) -> None:
        state = self.state
        state["in_flight"] -= 1
        drawn = state["rng"].random() if state["faults"] else 1.0
        if drawn < 0.05:
            self.transport.write(self.down)
        elif drawn < 0.07:
            self.transport.abort()
        elif drawn < 0.08:
            self.transport.write(self.half)
        elif drawn >= 0.082:  # between: it hangs
            self.transport.write(self.good)


def serve(ports: Queue[int], cap: int, service: float, faults: bool) -> None:
    async def main() -> None:
        Server.state = {
            "cap": cap, "service": service, "faults": faults, "rng": random.Random(0), "in_flight": 0, "requests": 0,
            "refused": 0,
        }  # fmt: skip
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0, backlog=4096)
        ports.put(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(main())


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measured(name: str, ideal_waves: float, work: Any, count: int, **server: Any) -> None:
    """Runs `work(url)` against a fresh server and prints share of ideal, CPU seconds per 1,000 and what was lost."""
    import httpx2

    context = multiprocessing.get_context("spawn")
    ports: Queue[int] = context.Queue()
    process = context.Process(
        target=serve, args=(ports, server["cap"], server["service"], server.get("faults", False))
    )
    process.start()
    url = f"http://127.0.0.1:{ports.get(timeout=60)}"
    began, used = time.monotonic(), cpu()
    lost = work(url)
    took, used = time.monotonic() - began, cpu() - used
    state = httpx2.get(url).json()
    process.kill()
    ideal = ideal_waves * server["service"]
    print(
        f"{name:44s} {ideal / took:5.2f} of ideal  {took:6.2f} s  {1000 * used / count:5.2f} CPU s/1,000  "
        f"{lost:4d} lost  {state['refused']:4d} refused of {state['requests']}",
        flush=True,
    )


def ours(count: int, ledger: str | None = None, **settings: Any) -> Any:
    def work(url: str) -> int:
        teacher = {"name": "t", "model": "m", "endpoint": url, **settings}
        table = generate_parallel([f"p{n}" for n in range(count)], [teacher], ledger=ledger, progress=False)
        return sum(error is not None for error in table["error"])

    return work


def in_map(count: int, **settings: Any) -> Any:
    def work(url: str) -> int:
        prompts = Dataset.from_dict({"prompt": [f"p{n}" for n in range(count)]})
        kwargs = {"teacher": {"name": "t", "model": "m", "endpoint": url, **settings}}
        table = prompts.map(persyn_generate, batched=True, batch_size=count, fn_kwargs=kwargs)
        return sum(error is not None for error in table["error"])

    return work


def bare(count: int, concurrency: int) -> Any:
    """The loop that a person would write: `AsyncInferenceClient` and a semaphore."""

    def work(url: str) -> int:
        async def main() -> int:
            from huggingface_hub import AsyncInferenceClient
            from huggingface_hub.errors import HfHubHTTPError

            client, gate, lost = AsyncInferenceClient(base_url=url, api_key="-"), asyncio.Semaphore(concurrency), 0

            async def one(n: int) -> None:
                nonlocal lost
                async with gate:
                    try:
                        await client.chat_completion([{"role": "user", "content": f"p{n}"}], max_tokens=8)
                    except HfHubHTTPError:
                        lost += 1

            await asyncio.gather(*(one(n) for n in range(count)))
            return lost

        return asyncio.run(main())

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--cap", type=int, default=64)
    parser.add_argument("--service", type=float, default=0.25)
    options = parser.parse_args()
    count, cap, service = options.prompts, options.cap, options.service
    waves, server = count / cap, {"cap": cap, "service": service}
    measured("warm-up", 1, ours(cap, max_concurrency=cap), cap, **server)
    measured("bare AsyncInferenceClient, cap known", waves, bare(count, cap), count, **server)
    measured("cap known", waves, ours(count, max_concurrency=cap), count, **server)
    measured("cap known, inside datasets.map", waves, in_map(count, max_concurrency=cap), count, **server)
    measured("bare AsyncInferenceClient at 2 x cap", waves, bare(count, 2 * cap), count, **server)
    measured("free to go to 2 x cap", waves, ours(count, max_concurrency=2 * cap), count, **server)
    mix = {**server, "faults": True}
    measured(
        "5% 503, 2% reset, 1% half JSON, 0.2% hang", waves, ours(count, max_concurrency=cap, timeout=3), count, **mix
    )


if __name__ == "__main__":
    main()
