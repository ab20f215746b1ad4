"""Throughput of `map(persyn_route)` against the bare model on the same batches, and against the loop people write.

    python -m tests.benchmarks.bench_routing [PROMPTS] [ROUTER_FOLDER]

Prints prompts per second of each, one thread, and the two ratios. Without a folder, a router is trained on MiniLM.
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

WORDS = [
    "write",
    "a",
    "short",
    "list",
    "about",
    "the",
    "sea",
    "and",
    "explain",
    "in",
    "python",
    "how",
    "tax",
    "law",
    "works",
    "for",
    "my",
    "dog",
    "without",
    "commas",
]


def mixed_prompts(count: int) -> list[str]:
    """Lengths are log-normal: 10 to 400 words, median 30."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(3.4, 0.9, count), 10, 400).astype(int)
    return [" ".join(random.choice(WORDS, length)) for length in lengths]


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


def bare_forward(router: PersynRouter, texts: list[str]) -> float:
    """Seconds of the model alone, on pre-tokenised, length-sorted batches of the router's own token budget."""
    model, tokenizer = router._loaded.model, router._loaded.tokenizer
    batches = []
    for start in range(0, len(texts), 1000):  # as `map` hands them over
        encoded = sorted(tokenizer(texts[start : start + 1000], truncation=True)["input_ids"], key=len, reverse=True)
        while encoded:
            size = max(1, router.token_budget // len(encoded[0]))
            batches.append(tokenizer.pad({"input_ids": encoded[:size]}, return_tensors="pt"))
            encoded = encoded[size:]
    begin = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            model(**batch)
    return time.perf_counter() - begin


def naive_loop(router: PersynRouter, texts: list[str]) -> float:
    """Seconds of the usual loop: row order, batches of 32, padded to the longest."""
    model, tokenizer = router._loaded.model, router._loaded.tokenizer
    begin = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(texts), 32):
            model(**tokenizer(texts[start : start + 32], padding=True, truncation=True, return_tensors="pt"))
    return time.perf_counter() - begin


def main() -> None:
    torch.set_num_threads(1)
    disable_caching()
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    folder = sys.argv[2] if len(sys.argv) > 2 else minilm_router()
    texts = mixed_prompts(count)
    router = PersynRouter.from_pretrained(folder, device="cpu")
    router.scores(texts[:64])
    bare = bare_forward(router, texts)
    begin = time.perf_counter()
    Dataset.from_dict({"prompt": texts}).map(persyn_route, batched=True, fn_kwargs=pin_router(folder))
    mapped = time.perf_counter() - begin
    naive = naive_loop(router, texts)
    for name, seconds in (("bare model", bare), ("map(persyn_route)", mapped), ("naive loop", naive)):
        print(f"{name:20s} {count / seconds:8.1f} prompts/s")
    print(f"map / bare {bare / mapped:.2f}   map / naive {naive / mapped:.2f}")


if __name__ == "__main__":
    main()
