"""What runs on a GPU, against what people write: one table, and JSON beside it.

    python -m tests.benchmarks.bench_gpu                                  # all parts, under six minutes on one card
    python -m tests.benchmarks.bench_gpu --parts scoring teachers --limit 120
    python -m tests.benchmarks.bench_gpu --device cpu --tiny              # whether it runs: under a minute

Every part is a process of its own under a time limit of its own; what it has measured when the limit ends it counts.
Ways of one part take turns, and the median of the runs is given. `ratio` is the tokens per second of persyn_hf over
those of the other way; `share` is 2 x parameters x tokens of the unshared problem per second, over the matmul peak
that is measured in the same process. Weights are random, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PARTS = ("scoring", "teachers", "routing", "reward", "small", "large")
OURS, SORTED, PADDED = "persyn_hf", "sorted loop", "padded loop of 8"
ROUNDS = 3

LLAMAS: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512},
    "scoring": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                "num_key_value_heads": 8, "vocab_size": 65536},
    "small": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
              "num_key_value_heads": 3, "vocab_size": 49152},
    "large": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
              "num_key_value_heads": 8, "vocab_size": 32768},
}  # fmt: skip


def main() -> None:
    options = parse()
    if options.child:
        MEASURE[options.child](options)
        return
    rows: list[dict[str, Any]] = []
    for part in options.parts:
        found, note = run_part(part, options)
        rows += found
        print(f"\n{part}: {note}", flush=True)
        show(found)
    Path(options.json).write_text(json.dumps(rows, indent=1))
    print(f"\n{len(rows)} rows in {options.json}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS[:4]))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tiny", action="store_true", help="tiny models and little work: whether it runs")
    parser.add_argument("--limit", type=float, default=85, help="seconds of each part, loading included")
    parser.add_argument("--json", default="bench_gpu.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_part(part: str, options: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """The rows of a part, and how it ended."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_gpu", "--child", part, "--device", options.device]
    command += ["--dtype", options.dtype, *(["--tiny"] if options.tiny else [])]
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=out, stderr=errors)
        try:
            code: int | None = child.wait(options.limit)
        except subprocess.TimeoutExpired:
            code = None
            child.kill()
            child.wait()
        out.seek(0)
        errors.seek(0)
        rows = [json.loads(line) for line in out if line.startswith('{"part"')]
        said = errors.read().strip().splitlines()
    seconds = time.perf_counter() - begin
    if code is None:
        return rows, f"stopped at its limit of {options.limit:.0f} s"
    return rows, f"{seconds:.0f} s" if code == 0 else f"failed: {said[-1] if said else code}"


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        figures = [f"{name} {value:,.4g}" for name, value in row.items() if isinstance(value, float | int)]
        print(f"  {row['way']:34} " + "  ".join(figures), flush=True)


def report(part: str, way: str, **figures: float) -> None:
    print(json.dumps({"part": part, "way": way, **figures}), flush=True)


class Meter:
    """Seconds of work that a device does, and its memory above what it held before."""

    def __init__(self, device: str) -> None:
        import torch

        self.cuda = torch.device(device).type == "cuda"

    def __call__(self, work: Callable[[], Any]) -> tuple[float, float]:
        import torch

        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated() if self.cuda else 0
        begin = time.perf_counter()
        work()
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        return seconds, (torch.cuda.max_memory_allocated() - held) / 2**20 if self.cuda else 0.0


def take_turns(
    part: str, ways: dict[str, tuple[Callable[[], Any], int]], options: argparse.Namespace, flops: float = 0.0
) -> None:
    """Times ways in turns and reports each after every round; a way has its work and the tokens of it."""
    meter, seconds, memory = Meter(options.device), {}, {}
    peak = matmul_peak(options.dtype, options.device) if flops else 0.0
    for turn in range(1 if options.tiny else ROUNDS):
        for way, (work, tokens) in ways.items():
            spent, held = meter(work)
            seconds.setdefault(way, []).append(spent)
            memory[way] = max(memory.get(way, 0.0), held)
            speed = tokens / statistics.median(seconds[way])
            figures = {
                "turn": turn + 1,
                "tokens": tokens,
                "seconds": statistics.median(seconds[way]),
                "tokens/s": speed,
            }
            if OURS in seconds and way != OURS:
                figures["ratio"] = ways[OURS][1] / statistics.median(seconds[OURS]) / speed
            if flops:
                figures["share"] = flops * speed / peak
            report(part, way, **figures, memory_mb=memory[way])


def matmul_peak(dtype: str, device: str) -> float:
    import torch

    size = 1024 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(getattr(torch, dtype)) for _ in range(2))
    meter = Meter(device)
    return max(2 * size**3 * 4 / meter(lambda: [left @ right for _ in range(4)])[0] for _ in range(4))


def make_llama(folder: str, options: argparse.Namespace, size: str, kind: str = "causal-lm") -> str:
    """Saves a random Llama in the wanted type, made on the device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from tests.scoring.models import tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=2,
                         **LLAMAS["tiny" if options.tiny else size])  # fmt: skip
    config.num_labels = 1 if kind == "classifier" else 2
    made = LlamaForSequenceClassification if kind == "classifier" else LlamaForCausalLM
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, options.dtype))
    try:
        with torch.device(options.device):
            made(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    tokenizer().save_pretrained(folder)
    return folder


def answers_of(options: argparse.Namespace, size: int, prompts: int, teachers: int = 12) -> list[Any]:
    """Lengths as real ones: prompts of 20 to 120 tokens, answers log-normal with a median of 200, to 1,500."""
    from persyn_hf.models.rendering import Rendered

    draw = random.Random(0)
    if options.tiny:
        prompts, teachers = 3, 4
    answers = []
    for _ in range(prompts):
        prompt = tuple(draw.choices(range(size), k=draw.randint(20, 120)))
        for _ in range(teachers):
            length = min(int(draw.lognormvariate(5.3, 0.7)) + 1, 100 if options.tiny else 1500)
            answers.append(Rendered(prompt, tuple(draw.choices(range(size), k=length))))
    return answers


def sorted_loop(model: Any, answers: list[Any], token_budget: int = 16384, rows: int = 4096) -> list[float]:
    """The plain way to beat: sorted by length, padded on the right, no mask, one transfer at the end."""
    import torch
    from torch.nn.functional import linear

    device, weight = model.device, model.lm_head.weight
    order, pending, at = sorted(range(len(answers)), key=lambda row: -len(answers[row].ids)), [], 0
    with torch.inference_mode():
        while at < len(order):
            width = len(answers[order[at]].ids)
            batch = order[at : at + max(1, token_budget // width)]
            at += len(batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            wanted = torch.zeros(len(batch), width, dtype=torch.bool)
            for place, row in enumerate(batch):
                start, end = answers[row].span
                ids[place, : len(answers[row].ids)] = torch.tensor(answers[row].ids)
                wanted[place, start - 1 : end - 1] = True
            sources = wanted.flatten().nonzero()[:, 0].to(device)
            targets = ids.roll(-1, 1)[wanted].to(device)
            hidden = model.base_model(input_ids=ids.to(device), use_cache=False)[0].flatten(0, 1)
            owners = wanted.nonzero()[:, 0].to(device)
            sums = torch.zeros(len(batch), dtype=torch.float64, device=device)
            for first in range(0, len(targets), rows):
                logits = linear(hidden[sources[first : first + rows]], weight).float()
                own = logits.gather(1, targets[first : first + rows, None])[:, 0]
                sums.index_add_(0, owners[first : first + rows], (own - logits.logsumexp(1)).double())
            pending.append((batch, sums))
    found = {row: value for batch, sums in pending for row, value in zip(batch, sums.tolist(), strict=True)}
    return [found[row] / len(answers[row].completion_ids) for row in range(len(answers))]


def scoring(options: argparse.Namespace, part: str = "scoring") -> None:
    """A student: persyn_hf, the sorted loop and the padded loop, on the same weights."""
    from transformers import AutoModelForCausalLM

    from persyn_hf.scoring.engine import score_rendered
    from persyn_hf.scoring.student import load_student
    from tests.benchmarks.bench_scoring import padded_loop

    prompts = {"scoring": 128, "small": 256, "large": 24}[part]
    with tempfile.TemporaryDirectory() as folder:
        make_llama(folder, options, part)
        student = load_student(folder, dtype=options.dtype, device=options.device)
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=student.model.dtype, attn_implementation="sdpa")
        plain = plain.to(options.device).eval()
    answers = answers_of(options, student.model.config.vocab_size, prompts)
    some = answers[:: 1 if options.tiny else 8]  # the padded loop is slow
    tokens, few = (sum(len(answer.ids) for answer in part) for part in (answers, some))
    warm = score_rendered(student, some, ranks=True)
    theirs = sorted_loop(plain, some)
    worst = max(abs(one.learnability - other) for one, other in zip(warm, theirs, strict=True))
    signed = statistics.mean(one.learnability - other for one, other in zip(warm, theirs, strict=True))
    report(part, "difference from the sorted loop", largest=worst, mean_signed=signed)
    parameters = sum(weight.numel() for weight in student.model.parameters())
    ways = {
        OURS: (lambda: score_rendered(student, answers), tokens),
        SORTED: (lambda: sorted_loop(plain, answers), tokens),
        f"{OURS}, with ranks": (lambda: score_rendered(student, answers, ranks=True), tokens),
        PADDED: (lambda: padded_loop(plain, some, 8), few),
    }
    take_turns(part, ways, options, flops=2.0 * parameters)
    if student.streamed:
        report(part, "tokens of a forward pass", size=student.growth.size, settled=int(student.growth.settled))


def reward(options: argparse.Namespace) -> None:
    """A reward model: persyn_hf and transformers' pipeline, on the same texts."""
    import torch
    from transformers import pipeline

    from persyn_hf.models.readable import apply_template
    from persyn_hf.scoring.reward_model import load_reward_model, reward_scores

    draw, words = random.Random(0), ["hello", "the", "hell", "of", "no", "way", "what", "yes", "there"]
    count = 24 if options.tiny else 1536
    texts = [" ".join(draw.choices(words, k=min(int(draw.lognormvariate(4.5, 0.7)) + 1, 400))) for _ in range(count)]
    prompts = [" ".join(draw.choices(words, k=20))] * count
    with tempfile.TemporaryDirectory() as folder:
        make_llama(folder, options, "scoring", "classifier")
        model = load_reward_model(folder, dtype=options.dtype, device=options.device)
        theirs = pipeline("text-classification", folder, device=options.device, dtype=getattr(torch, options.dtype))
    conversations = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    rendered = [apply_template(model.tokenizer, one) for one in conversations]
    tokens = sum(len(ids) for ids in model.tokenizer(rendered, add_special_tokens=False)["input_ids"])
    names = [f"row {row}" for row in range(count)]
    reward_scores(model, prompts[:16], texts[:16], names[:16])
    how: Any = {"batch_size": 16, "function_to_apply": "none"}
    ways = {
        OURS: (lambda: reward_scores(model, prompts, texts, names), tokens),
        "transformers' pipeline": (lambda: list(theirs(rendered, **how)), tokens),
    }
    take_turns("reward", ways, options)


def routing(options: argparse.Namespace) -> None:
    """`map(persyn_route)` against the bare model on tokenised, sorted batches."""
    import numpy as np
    from datasets import Dataset, disable_caching
    from transformers import BertConfig, BertModel

    from persyn_hf import PersynRouter, persyn_route, train_router
    from tests.benchmarks.bench_routing import mixed_prompts
    from tests.scoring.models import tokenizer

    disable_caching()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if not options.tiny:
        sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    made = [
        {"prompt_id": str(row), "prompt": prompt, "teacher": teacher, "reward": float(value)}
        for row, prompt in enumerate(mixed_prompts(40))
        for teacher, value in zip("abcd", np.random.default_rng(row).random(4), strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        BertModel(BertConfig(vocab_size=270, max_position_embeddings=512, **sizes)).save_pretrained(f"{folder}/bert")
        tokenizer().save_pretrained(f"{folder}/bert")
        train_router(Dataset.from_list(made), f"{folder}/bert", "student", output_dir=f"{folder}/r", fallback="none")
        router = PersynRouter.from_pretrained(f"{folder}/r", device=options.device)
        texts = mixed_prompts(60 if options.tiny else 20000)
        table = Dataset.from_dict({"prompt": texts})
        encoded = sorted(router.tokenizer(texts, truncation=True)["input_ids"], key=len, reverse=True)
        batches, at = [], 0
        while at < len(encoded):
            size = max(1, router.token_budget // len(encoded[at]))
            batches.append(router.tokenizer.pad({"input_ids": encoded[at : at + size]}, return_tensors="pt"))
            at += size
        tokens = sum(map(len, encoded))
        route = {"router": f"{folder}/r", "device": options.device}

        def bare() -> None:
            import torch

            with torch.inference_mode():
                for batch in batches:
                    router.model(**batch.to(options.device))

        bare()
        ways = {
            OURS: (lambda: table.map(persyn_route, batched=True, fn_kwargs=route), tokens),
            "bare forward": (bare, tokens),
        }
        take_turns("routing", ways, options)


def teachers(options: argparse.Namespace) -> None:
    """`backend: local` against plain `generate` in batches of 32; tokens are those generated."""
    import torch

    from persyn_hf.config import Sampling
    from persyn_hf.generation.client import Request
    from persyn_hf.generation.local import complete_batch, load_local_model
    from persyn_hf.models.identity import resolve_revision

    rows, length = (8, 8) if options.tiny else (256, 256)
    with tempfile.TemporaryDirectory() as folder:
        make_llama(folder, options, "small")
        local = load_local_model(folder, None, options.dtype, options.device, resolve_revision(folder))
    texts = [f"hello {row} the hell " * (1 + row % 5) for row in range(rows)]
    sampling = Sampling(temperature=1.0, max_tokens=length)
    requests = [
        Request(str(row), ({"role": "user", "content": text},), sampling, row) for row, text in enumerate(texts)
    ]
    produced: dict[str, int] = {}

    def ours() -> None:
        found = complete_batch(local, requests, threading.Event())
        produced[OURS] = sum(getattr(one, "completion_tokens", None) or 0 for one in found)

    def plain() -> None:
        total = 0
        for start in range(0, rows, 32):
            batch = local.tokenizer(texts[start : start + 32], return_tensors="pt", padding=True, padding_side="left")
            with torch.inference_mode():
                out = local.model.generate(**batch.to(options.device), do_sample=True, max_new_tokens=length,
                                           pad_token_id=2)  # fmt: skip
            total += (out.shape[1] - batch["input_ids"].shape[1]) * len(out)
        produced["generate"] = total

    complete_batch(local, requests[:4], threading.Event())
    meter = Meter(options.device)
    for way, work in ((OURS, ours), ("generate", plain)):
        seconds, memory = meter(work)
        report("teachers", way, tokens=produced[way], seconds=seconds, **{"tokens/s": produced[way] / seconds},
               memory_mb=memory)  # fmt: skip


MEASURE: dict[str, Callable[[argparse.Namespace], None]] = {
    "scoring": scoring,
    "small": lambda options: scoring(options, "small"),
    "large": lambda options: scoring(options, "large"),
    "reward": reward,
    "routing": routing,
    "teachers": teachers,
}


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
