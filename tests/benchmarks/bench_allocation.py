"""Time and memory of `allocate` for a million prompts and twenty teachers, and of a probe that covers 50,000 prompts.

    python -m tests.benchmarks.bench_allocation [PROMPTS]

Prints seconds, how far from the best sum each allocation can be at most, and the peak memory of the process.
"""

from __future__ import annotations

import resource
import sys
import time

import numpy as np

from persyn_hf import allocate
from persyn_hf.routing.probe import cover

TEACHERS = [f"teacher-{index}" for index in range(20)]


def main() -> None:
    prompts = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    random = np.random.default_rng(0)
    scores = random.standard_normal((prompts, 20), dtype=np.float32) + random.standard_normal(20, dtype=np.float32)
    cost = dict(zip(TEACHERS, random.uniform(0.1, 3.0, 20), strict=True))
    rate = dict(zip(TEACHERS, random.uniform(0.5, 5.0, 20), strict=True))
    cases = {
        "no limits": {},
        "shares": {"max_share": 0.1, "min_share": 0.01},
        "shares and budget": {"max_share": 0.1, "min_share": 0.01, "cost": cost, "budget": 1.2 * prompts},
        "all finish together": {"makespan": "shortest", "throughput": rate},
        "two teachers each, shares": {"top_k": 2, "max_share": 0.15},
        "temperature, shares": {"temperature": 0.5, "max_share": 0.1},
    }
    for name, given in cases.items():
        begin = time.perf_counter()
        made = allocate(scores, TEACHERS, **given)
        seconds = time.perf_counter() - begin
        print(f"{name:28s} {seconds:6.1f} s   at most {made.gap / abs(made.total):.1e} of the sum below the best")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    embeddings = random.standard_normal((50_000, 384), dtype=np.float32)
    begin = time.perf_counter()
    cover(embeddings, 2500)
    print(f"cover: 2,500 of 50,000 prompts, 384 wide: {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
