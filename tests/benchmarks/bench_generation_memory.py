"""Memory of the engine: `python -m tests.benchmarks.bench_generation_memory PROMPTS TEACHERS`, a process per size."""

import asyncio
import resource
import sys
import time

from datasets import Dataset

from persyn_hf.generation import run as engine
from persyn_hf.generation.generate import generate_parallel
from persyn_hf.ledger.completion import Completion


class Instant:
    async def complete(self, request):
        await asyncio.sleep(0)
        return Completion("An answer of a usual length. " * 10, "stop", 20, 80)

    async def aclose(self):
        pass


def main():
    prompts, teachers = int(sys.argv[1]), int(sys.argv[2])
    engine._clients = lambda plan: [[Instant()] for _ in plan.asked]
    table = Dataset.from_dict({"prompt": [f"Prompt number {n} " + "and so on " * 10 for n in range(prompts)]})
    common = {"endpoint": "http://localhost:1", "preflight": False, "max_concurrency": 64}
    chosen = [{"name": f"t{n}", "model": f"m{n}", **common} for n in range(teachers)]
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    made = generate_parallel(table, chosen, sys.argv[3] if len(sys.argv) > 3 else None, progress=False)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak, more = after / 1024, (after - before) / 1024
    took = time.monotonic() - began
    print(f"{len(made)} rows in {took:.0f} s; peak {peak:.0f} MB, {more:.0f} MB above the start")


main()
