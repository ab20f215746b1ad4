"""A long run against an endpoint that misbehaves: memory and file descriptors stay flat, no row is lost.

    python -m tests.benchmarks.soak_generation --minutes 60

5% 503 pages, 2% resets, 1% half JSON, 0.2% hangs, service times that vary by half. Exit code 1 where rows are missing,
or where memory or descriptors grow from the second quarter of the run to the last.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from persyn_hf.generation.generate import generate_parallel
from persyn_hf.ledger.ledger import Ledger
from tests.benchmarks.bench_generation import DEADLINE, lost, prompts
from tests.benchmarks.endpoint import MIX, Behaviour, counters_of, running

CAP, SERVICE = 64, 0.25
#: Growth that counts as flat: MB of memory (SQLite's and the allocator's caches fill slowly) and descriptors.
MEMORY, DESCRIPTORS = 20.0, 4


@dataclass
class Sample:
    at: float
    memory: float
    descriptors: int
    rows: int


def sample(ledger: Path, samples: list[Sample], stop: threading.Event) -> None:
    """Looks at this process every second."""
    own, began = psutil.Process(), time.monotonic()
    while not stop.wait(1.0):
        rows = 0
        if ledger.exists():
            with Ledger(ledger) as opened:
                rows = len(opened)
        samples.append(Sample(time.monotonic() - began, own.memory_info().rss / 2**20, own.num_fds(), rows))


def quarter(samples: list[Sample], number: int) -> tuple[float, float]:
    """Medians of memory and descriptors in one quarter of the time (0 to 3)."""
    size = len(samples) // 4
    part = samples[number * size : (number + 1) * size]
    return statistics.median(s.memory for s in part), statistics.median(s.descriptors for s in part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=0.8 * CAP / SERVICE, help="rows per second to plan for")
    options = parser.parse_args()
    count = int(60 * options.minutes * options.rate)
    samples: list[Sample] = []
    stop = threading.Event()
    with running(Behaviour(CAP, SERVICE, jitter=0.5, faults=MIX)) as (url,), tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder) / "ledger.sqlite"
        watching = threading.Thread(target=sample, args=(ledger, samples, stop))
        watching.start()
        teacher = {"name": "t", "model": "m", "endpoint": url, "max_concurrency": CAP, "timeout": DEADLINE}
        began = time.monotonic()
        table = generate_parallel(prompts(count), [teacher], ledger, progress=os.isatty(2))
        took = time.monotonic() - began
        stop.set()
        watching.join()
        seen, missing = counters_of(url), lost(table)
    asking = [s for s in samples if 0 < s.rows < 0.98 * count]
    (memory, descriptors), (memory_later, descriptors_later) = quarter(asking, 1), quarter(asking, 3)
    for s in asking[:: max(1, len(asking) // 12)]:
        print(f"{s.at:7.0f} s  {s.rows:9,} rows  {s.memory:6.1f} MB  {s.descriptors:4d} descriptors")
    print(f"{count:,} rows in {took:.0f} s, {seen.requests:,} requests, {missing} without an answer")
    print(f"second quarter to last: memory {memory:.1f} to {memory_later:.1f} MB, descriptors {descriptors:.0f} to "
          f"{descriptors_later:.0f}")  # fmt: skip
    flat = memory_later - memory < MEMORY and descriptors_later - descriptors < DESCRIPTORS
    sys.exit(0 if flat and not missing else 1)


if __name__ == "__main__":
    main()
