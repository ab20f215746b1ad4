"""Throughput of `map(persyn_route)` against the bare model on the same batches, and against the loop people write.

    python -m tests.benchmarks.bench_routing [PROMPTS] [ROUTER_FOLDER]

`map` routes all prompts, 20,000 by default, of 10 to 400 words, and is timed in ten parts. After every part the bare
model runs on batches drawn at random from that part's own (pre-tokenised, sorted by length, of the router's token
budget), and the naive loop (tokenise and run in row order, batches of 32, padded to the longest) on batches of 32
neighbours drawn at random from all. Each is scaled up to the whole, bare by tokens and naive by prompts, so that all
three see the machine in the same state. One thread. Without a folder, a router is trained on MiniLM.
"""

from __future__ import annotations

import sys
import tempfile
import time

import numpy as np
import torch
from datasets import Dataset, disable_caching

from persyn_hf import PersynRouter, persyn_route, pin_router, train_router
from persyn_hf.demo.weights import prepare_models

SENTENCE = "write a short list about the sea and explain in python how tax law works for my dog without commas now"
PARTS = 10
#: Share of the batches that the bare model runs, and batches of 32 that the naive loop runs, after each part.
BARE_SHARE, NAIVE_BATCHES = 0.15, 2


def mixed_prompts(count: int) -> list[str]:
    """Lengths are log-normal: 10 to 400 words, median 30."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(3.4, 0.9, count), 10, 400).astype(int)
    return [" ".join(random.choice(SENTENCE.split(), length)) for length in lengths]


def minilm_router() -> str:
    """The folder of a router on the real MiniLM, trained on made-up rewards: only its speed is looked at."""
    scored = Dataset.from_list(
        [
            {"prompt_id": str(row), "prompt": prompt, "teacher": teacher, "reward": reward}
            for row, prompt in enumerate(mixed_prompts(60))
            for teacher, reward in zip("abcd", np.random.default_rng(row).random(4).tolist(), strict=True)
        ]
    )
    _, minilm = prepare_models(".models")
    folder = tempfile.mkdtemp(prefix="bench-router-")
    train_router(scored, str(minilm), "student", output_dir=folder, fallback="none")
    return folder


def bare_forward(router: PersynRouter, texts: list[str], random: np.random.Generator) -> float:
    """Seconds of the model alone on all batches of these texts, from those that are drawn."""
    tokenizer, batches = router.tokenizer, []
    for start in range(0, len(texts), 1000):  # as `map` hands them over
        encoded = sorted(tokenizer(texts[start : start + 1000], truncation=True)["input_ids"], key=len, reverse=True)
        while encoded:
            size = max(1, router.token_budget // len(encoded[0]))
            batches.append(tokenizer.pad({"input_ids": encoded[:size]}, return_tensors="pt"))
            encoded = encoded[size:]
    drawn = random.choice(len(batches), max(4, int(len(batches) * BARE_SHARE)), replace=False)
    begin = time.perf_counter()
    with torch.inference_mode():
        for index in drawn:
            router.model(**batches[index])
    seconds = time.perf_counter() - begin
    tokens = [batch["input_ids"].numel() for batch in batches]
    return seconds * sum(tokens) / sum(tokens[index] for index in drawn)


def naive_loop(router: PersynRouter, texts: list[str], random: np.random.Generator) -> float:
    """Seconds per prompt of the usual loop, from batches of 32 neighbours that are drawn."""
    begin = time.perf_counter()
    with torch.inference_mode():
        for start in random.integers(0, len(texts) - 32, NAIVE_BATCHES):
            batch = texts[start : start + 32]
            router.model(**router.tokenizer(batch, padding=True, truncation=True, return_tensors="pt"))
    return (time.perf_counter() - begin) / (32 * NAIVE_BATCHES)


def main() -> None:
    torch.set_num_threads(1)
    disable_caching()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    folder = sys.argv[2] if len(sys.argv) > 2 else minilm_router()
    texts, random = mixed_prompts(count), np.random.default_rng(1)
    router = PersynRouter.from_pretrained(folder, device="cpu")
    router.scores(texts[:64])
    pinned = pin_router(folder)
    mapped = bare = naive = 0.0
    for part in np.array_split(np.arange(count), PARTS):
        own = [texts[index] for index in part]
        begin = time.perf_counter()
        Dataset.from_dict({"prompt": own}).map(persyn_route, batched=True, fn_kwargs=pinned)
        mapped += time.perf_counter() - begin
        bare += bare_forward(router, own, random)
        naive += naive_loop(router, texts, random) * len(own)
    for name, seconds in (("bare model", bare), ("map(persyn_route)", mapped), ("naive loop", naive)):
        print(f"{name:20s} {count / seconds:8.1f} prompts/s")
    print(
        f"map / bare {bare / mapped:.2f}   map / naive {naive / mapped:.2f}   ({count} prompts by map; bare on "
        f"{BARE_SHARE:.0%} of the batches, naive on {32 * NAIVE_BATCHES * PARTS} prompts, drawn at random)"
    )


if __name__ == "__main__":
    main()
