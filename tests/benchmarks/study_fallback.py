"""What the fallback to the best single teacher does on probes of each size, and where there is nothing to learn.

    python -m tests.benchmarks.study_fallback --data FOLDER [--sizes 60 90 150 250 400 540] [--draws 24]

Random probes out of the instruction zoo at alpha 0, with their own rewards and with those of other prompts; judged on
the prompts that are left. FOLDER and figures are those of `study_router`.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.study_router import BACKBONES, Embedded, Split, _answers, _embed, _frozen, _rewarded


def main() -> None:
    """Runs the study and prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[60, 90, 150, 250, 400, 540])
    parser.add_argument("--draws", type=int, default=24)
    arguments = parser.parse_args()
    arguments.alphas, arguments.no_scoring, arguments.learnability = [0.0], True, Path("none.jsonl")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers = _answers(arguments, "instruct")
    _, weights, depth = BACKBONES["minilm"]
    (inputs, bias), table = _embed(answers, weights, depth), _rewarded(answers, 0.0)
    assert table is not None
    embedded = Embedded(np.stack([inputs[identity] for identity in table.ids]), bias)
    print("| probe | rewards | closes without fallback | kept | closes | significantly below |")
    print("|---|---|---|---|---|---|", flush=True)
    for size in arguments.sizes:
        for shuffled in (False, True):
            free, guarded = [], []
            for draw in range(arguments.draws):
                random = np.random.default_rng(1000 * draw + size + 7 * shuffled)
                order = random.permutation(len(table.ids))
                rewards = table.rewards[random.permutation(len(table.ids))] if shuffled else table.rewards
                drawn = replace(table, rewards=rewards)
                parts = (drawn, embedded, order[:size], order[size:], "regression")
                guarded.append(_frozen(*parts, "best-single"))
                free.append(_frozen(*parts, "none") if guarded[-1].fell_back else guarded[-1])
            kept = np.mean([not split.fell_back for split in guarded])
            below = sum(split.high < 0 for split in guarded)
            kind = "of other prompts" if shuffled else "its own"
            cells = (size, kind, f"{_closed(free):+.3f}", f"{kept:.0%}", f"{_closed(guarded):+.3f}", below)
            print("|", " | ".join(map(str, cells)), "|", flush=True)


def _closed(splits: list[Split]) -> float:
    """The mean share of the gap that was closed."""
    return float(np.mean([split.gained / split.gap for split in splits]))


if __name__ == "__main__":
    main()
