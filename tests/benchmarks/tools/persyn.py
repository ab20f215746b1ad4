"""Ours, with the ledger on disk."""

import os

from common import folder, main

from persyn_hf.generation.generate import generate_parallel


def ask_all(url, count, concurrency):
    teacher = {"name": "t", "model": "m", "endpoint": url, "max_concurrency": concurrency, "timeout": 3}
    ledger = os.path.join(folder(), "ledger.sqlite")
    table = generate_parallel([f"p{n}" for n in range(count)], [teacher], ledger, progress=False)
    return [answer for answer in table["completion"][:] if answer]


main(ask_all)
