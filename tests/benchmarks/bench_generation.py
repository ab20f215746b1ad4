"""How near the engine comes to what endpoints can bear, and what that costs the client.

A server process of our own answers after a fixed time and refuses what exceeds its cap. Every line is a ratio taken in
one run; `bare` lines are the loop that a person would write with `AsyncInferenceClient` and a semaphore.

    python -m tests.benchmarks.bench_generation [CASE ...] [--prompts 5000] [--cap 64] [--service 0.25]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset, disable_progress_bars

from persyn_hf.generation.generate import generate_parallel, generate_routed, persyn_generate
from persyn_hf.ledger.ledger import Ledger
from tests.benchmarks.endpoint import HANGS, MIX, Behaviour, answered_before, counters_of, running

#: Seconds that a request may take where requests hang.
DEADLINE = 3.0
#: Asks the endpoint at an address; gives the table, or how many are lost.
Work = Callable[[str], Dataset | int]


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@dataclass
class Measure:
    """What one run took: wall-clock and processor seconds, and what was lost."""

    seconds: float
    cpu: float
    lost: int
    refused: int
    requests: int
    steady_share: float | None
    steady_refused: float | None


def measure(work: Work, count: int, behaviour: Behaviour) -> Measure:
    with running(behaviour) as (url,):
        began, used = time.monotonic(), cpu()
        made = work(url)
        took, used = time.monotonic() - began, cpu() - used
        seen = counters_of(url)
    share = refused = None
    if seen.marked_at:
        left = seen.good - behaviour.mark
        share = left / behaviour.cap * behaviour.service / (seen.last - seen.marked_at)
        refused = (seen.refused - seen.marked_refused) / max(1, seen.requests - seen.marked_requests)
    return Measure(
        took, used, made if isinstance(made, int) else lost(made), seen.refused, seen.requests, share, refused
    )


def show(name: str, found: Measure, count: int, behaviour: Behaviour) -> None:
    ideal = count / behaviour.cap * behaviour.service
    steady = (
        ""
        if found.steady_share is None
        else f"  from 500 on {found.steady_share:.3f}, {found.steady_refused:.2%} refused"
    )
    print(
        f"{name:44s} {ideal / found.seconds:6.3f} of ideal  {found.seconds:6.2f} s  {1000 * found.cpu / count:5.2f}"
        f" CPU s/1,000  {found.lost:4d} lost  {found.refused:5d} refused of {found.requests}{steady}",
        flush=True,
    )


def prompts(count: int) -> Dataset:
    return Dataset.from_dict({"prompt": [f"p{n}" for n in range(count)]})


def lost(table: Dataset) -> int:
    return sum(text is None or not text for text in table["completion"])


def ours(count: int, folder: str | None = None, **settings: object) -> Work:
    """The engine with its ledger on disk, as a user runs it."""

    def work(url: str) -> Dataset:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            teacher = {"name": "t", "model": "m", "endpoint": url, **settings}
            return generate_parallel(prompts(count), [teacher], Path(place) / "ledger.sqlite", progress=False)

    return work


def in_map(count: int, batch: int, **settings: object) -> Work:
    def work(url: str) -> Dataset:
        with tempfile.TemporaryDirectory() as place:
            teacher = {"name": "t", "model": "m", "endpoint": url, **settings}
            kwargs = {"teacher": teacher, "ledger": str(Path(place) / "ledger.sqlite")}
            return prompts(count).map(persyn_generate, batched=True, batch_size=batch, fn_kwargs=kwargs)

    return work


def bare(count: int, concurrency: int) -> Work:
    """The loop that a person would write."""

    def work(url: str) -> int:
        async def main() -> int:
            from huggingface_hub import AsyncInferenceClient
            from huggingface_hub.errors import HfHubHTTPError

            client, gate, failed = AsyncInferenceClient(base_url=url, api_key="-"), asyncio.Semaphore(concurrency), 0

            async def one(n: int) -> None:
                nonlocal failed
                async with gate:
                    try:
                        await client.chat_completion([{"role": "user", "content": f"p{n}"}], max_tokens=8)
                    except HfHubHTTPError:
                        failed += 1

            await asyncio.gather(*(one(n) for n in range(count)))
            return failed

        return asyncio.run(main())

    return work


def twenty(seconds: float) -> None:
    """20 teachers of different speed and cap at once; the slowest one's own ideal is what could be had."""
    behaviours = [Behaviour(4 + 3 * n % 29, (0.2, 0.35, 0.5, 1.0)[n % 4]) for n in range(20)]
    counts = [int((0.5 + 0.5 * n / 19) * seconds * b.cap / b.service) for n, b in enumerate(behaviours)]
    rate = sum(count / seconds for count in counts)
    with running(*behaviours) as urls:
        teachers = [
            {"name": f"t{n}", "model": "m", "endpoint": url, "max_concurrency": b.cap}
            for n, (url, b) in enumerate(zip(urls, behaviours, strict=True))
        ]
        rows = [(f"t{n}", place) for n, count in enumerate(counts) for place in range(count)]
        rows.sort(key=lambda row: row[1] / counts[int(row[0][1:])])  # mixed, as routes are
        table = Dataset.from_dict({"prompt": [f"p{n}" for n in range(len(rows))], "route": [name for name, _ in rows]})
        with tempfile.TemporaryDirectory() as place:
            began, used = time.monotonic(), cpu()
            made = generate_routed(table, teachers, Path(place) / "ledger.sqlite", progress=False)
            took, used = time.monotonic() - began, cpu() - used
    slowest = max(count / b.cap * b.service for count, b in zip(counts, behaviours, strict=True))
    print(
        f"{f'20 teachers, {len(rows)} rows, {rate:.0f}/s':44s} {took / slowest:6.3f} x the slowest one's ideal"
        f"  {took:6.2f} s  {1000 * used / len(rows):5.2f} CPU s/1,000  {lost(made):4d} lost",
        flush=True,
    )


def processor(count: int, behaviour: Behaviour) -> None:
    """Ours, ledger included, against the bare loop: alternating, the best of three each."""
    takes = [
        (
            measure(bare(count, behaviour.cap), count, behaviour),
            measure(ours(count, max_concurrency=behaviour.cap), count, behaviour),
        )
        for _ in range(3)
    ]
    least = [min(take[side].cpu for take in takes) * 1000 / count for side in (0, 1)]
    name = "processor, bare loop and ours"
    print(f"{name:44s} {least[0]:.2f} and {least[1]:.2f} CPU s/1,000: {least[1] / least[0]:.2f}", flush=True)


def faults(count: int, behaviour: Behaviour) -> None:
    """The mix against what its hangs alone cost, over six draws of both: one hang near the end is three seconds."""
    settings = {"max_concurrency": behaviour.cap, "timeout": DEADLINE}
    took = {"0.2% hang": 0.0, "5% 503, 2% reset, 1% half JSON, 0.2% hang": 0.0}
    for seed in range(6):
        for name, drawn in zip(took, (HANGS, MIX), strict=True):
            faulty = replace(behaviour, faults=drawn, seed=seed)
            found = measure(ours(count, **settings), count, faulty)
            show(name, found, count, faulty)
            took[name] += found.seconds
    alone, mixed = took.values()
    print(f"{'':44s} {mixed / alone:6.3f} x what the hangs alone cost", flush=True)


def kills(times: int) -> None:
    """Rows that the server had answered and a process, killed at a random moment, had not yet kept."""
    behaviour, rng, again = Behaviour(64, 0.25, jitter=0.5), random.Random(0), []
    table = prompts(100_000)
    with running(behaviour) as (url,), tempfile.TemporaryDirectory() as place:
        path = Path(place) / "ledger.sqlite"
        teacher = {"name": "t", "model": "m", "endpoint": url, "max_concurrency": 64}
        for _ in range(times):
            before, kept = counters_of(url).good, len(Ledger(path)) if path.exists() else 0
            child = multiprocessing.get_context("fork").Process(
                target=generate_parallel, args=(table, [teacher], path), kwargs={"progress": False}
            )
            child.start()
            while counters_of(url).good < before + 200:
                time.sleep(0.05)
            time.sleep(rng.random())
            killed = time.monotonic()
            child.kill()
            child.join()
            finished = answered_before(url, killed)  # a dying process keeps its sockets for some milliseconds
            time.sleep(0.6)  # what was in flight finds nobody
            with Ledger(path) as ledger:
                again.append(finished - before - (len(ledger) - kept))
    print(f"{'finished rows sent again after kill -9':44s} {again}: {max(again)} at most", flush=True)


def many(cap: int) -> None:
    """512 in flight, 2,048 requests/s ideal, client and server on the same two cores."""
    behaviour, count = Behaviour(cap, 0.25), 30 * cap
    show(f"{cap} in flight", measure(ours(count, max_concurrency=cap), count, behaviour), count, behaviour)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "case", nargs="*", help="known, map, unknown, twice, twenty, processor, faults, many, kills; all"
    )
    parser.add_argument("--prompts", type=int, default=5000)
    parser.add_argument("--cap", type=int, default=64)
    parser.add_argument("--service", type=float, default=0.25)
    options = parser.parse_args()
    disable_progress_bars()
    count, cap = options.prompts, options.cap
    plain = Behaviour(cap, options.service)

    def line(name: str, work: Work) -> Callable[[], None]:
        return lambda: show(name, measure(work, count, plain), count, plain)

    cases = {
        "bare": line("bare AsyncInferenceClient, cap known", bare(count, cap)),
        "known": line("cap known", ours(count, max_concurrency=cap)),
        "map": line("cap known, inside datasets.map", in_map(count, count, max_concurrency=cap)),
        "unknown": line("cap unknown", ours(count)),
        "twice": line("free to go to 2 x cap", ours(count, max_concurrency=2 * cap)),
        "bare-twice": line("bare AsyncInferenceClient at 2 x cap", bare(count, 2 * cap)),
        "twenty": lambda: twenty(30.0),
        "processor": lambda: processor(2000, plain),
        "faults": lambda: faults(count, plain),
        "many": lambda: many(512),
        "kills": lambda: kills(10),
    }
    measure(ours(cap, max_concurrency=cap), cap, plain)  # warm-up
    for name in options.case or cases:
        cases[name]()


if __name__ == "__main__":
    main()
