"""Scoring against the loops that people write: time, useful arithmetic, memory, and the same scores.

    python tests/benchmarks/bench_scoring.py                                  # tiny synthetic student and answers
    python tests/benchmarks/bench_scoring.py --data DIR --model SMOLLM2 --prompts 32

Every measurement is a process of its own: peak memory is that process's, above what it held once the weights were
there. `share` is 2 x parameters x tokens of the unshared problem per second, over the measured matmul peak of the same
type on the same threads. Ratios are given by wall clock and by processor time, which a busy machine disturbs less.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PADDED, SINGLE, OURS = "padded loop of 8", "one at a time", "persyn_hf"


def main() -> None:
    options = parse()
    if options.child:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        options.model = options.model or synthetic_student(scratch, 8192)
        rows = []
        for dtype in options.dtype:
            for method in (PADDED, SINGLE, OURS):
                rows.append(child(options, method=method, dtype=dtype))
                show(rows[-1])
        compare(rows, options.dtype)
        sizes = [
            child(options, method=OURS, dtype="float32", model=synthetic_student(scratch, size), data=None)
            for size in (16384, 32768)
        ]
        print(
            f"\nvocabulary 16,384 -> 32,768 (synthetic): peak above the weights {sizes[0]['peak_mb']:.0f} -> "
            f"{sizes[1]['peak_mb']:.0f} MB"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with instruct_zoo.parquet; synthetic answers without it")
    parser.add_argument("--model", help="student checkpoint; a random one without it")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--teachers", type=int, default=12)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--method", default=OURS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def child(options: argparse.Namespace, **changes) -> dict:
    settings = vars(options) | {"child": None} | changes
    command = [sys.executable, __file__, "--child"]
    for name in ("data", "model", "prompts", "teachers", "dtype", "threads", "method"):
        if settings[name] is not None:
            command += [f"--{name}", str(settings[name])]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return json.loads(finished.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict:
    import torch

    from persyn_hf.scoring.engine import score_answers
    from persyn_hf.scoring.student import load_student

    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = options.dtype[0]
    sharing = None if options.method == OURS else "sdpa"
    student = load_student(options.model, dtype=dtype, attn_implementation=sharing)
    answers = zoo(options, student.tokenizer) if options.data else synthetic_answers(options, student.model)
    peak_flops = matmul_peak(getattr(torch, dtype))
    run = {
        PADDED: lambda some: padded_loop(student.model, some, 8),
        SINGLE: lambda some: padded_loop(student.model, some, 1),
        OURS: lambda some: [score.learnability for score in score_answers(student, some)],
    }[options.method]
    shortest = min(answers, key=lambda answer: len(answer.ids))
    run([shortest])
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here, not at loading
    wall, cpu = time.perf_counter(), time.process_time()
    scores = run(answers)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = sum(len(answer.ids) for answer in answers)
    flops = 2 * sum(weight.numel() for weight in student.model.parameters()) * tokens
    return {
        "method": options.method,
        "dtype": dtype,
        "tokens": tokens,
        "wall": wall,
        "cpu": cpu,
        "share": flops / wall / peak_flops["wall"],
        "share_cpu": flops / cpu / peak_flops["cpu"],
        "peak_gflops": peak_flops["wall"] / 1e9,
        "peak_mb": memory("VmHWM") - before,
        "scores": scores,
    }


def padded_loop(model, answers, size: int) -> list[float]:
    """What people write: row order, padded batches, full float32 logits, log_softmax, gather."""
    import torch

    scores = []
    with torch.no_grad():
        for start in range(0, len(answers), size):
            batch = answers[start : start + size]
            width = max(len(answer.ids) for answer in batch)
            ids = torch.tensor([list(answer.ids) + [0] * (width - len(answer.ids)) for answer in batch])
            mask = torch.tensor([[1] * len(answer.ids) + [0] * (width - len(answer.ids)) for answer in batch])
            logits = model(input_ids=ids, attention_mask=mask).logits.float()
            logprobs = torch.log_softmax(logits[:, :-1], dim=-1).gather(2, ids[:, 1:, None])[..., 0]
            for row, answer in enumerate(batch):
                first, last = answer.span
                scores.append(logprobs[row, first - 1 : last - 1].mean().item())
    return scores


def zoo(options: argparse.Namespace, tokenizer) -> list:
    import pyarrow.parquet

    from persyn_hf.scoring.rendering import render_answers

    table = pyarrow.parquet.read_table(Path(options.data) / "instruct_zoo.parquet").to_pydict()
    ids = list(dict.fromkeys(table["prompt_id"]))
    chosen = set(random.Random(0).sample(ids, options.prompts))
    teachers = set(list(dict.fromkeys(table["teacher"]))[: options.teachers])
    rows = [i for i, name in enumerate(table["teacher"]) if table["prompt_id"][i] in chosen and name in teachers]
    prompts, texts = ([table[column][row] for row in rows] for column in ("prompt", "completion"))
    rendered = render_answers(tokenizer, prompts, texts, ["stop"] * len(rows))
    return [answer for answer in rendered if len(answer.ids) <= 2048]


def synthetic_answers(options: argparse.Namespace, model) -> list:
    from persyn_hf.scoring.rendering import Rendered

    draw, size = random.Random(0), model.config.vocab_size
    answers = []
    for _ in range(options.prompts):
        prompt = tuple(draw.choices(range(size), k=draw.randint(20, 120)))
        for _ in range(options.teachers):
            length = min(int(draw.lognormvariate(5.3, 0.7)) + 1, 1500)
            answers.append(Rendered(prompt, tuple(draw.choices(range(size), k=length))))
    return answers


def synthetic_student(scratch: str, vocabulary: int) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.scoring.models import tokenizer

    torch.manual_seed(0)
    folder = f"{scratch}/{vocabulary}"
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def matmul_peak(dtype) -> dict[str, float]:
    import torch

    left, right = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    best = {"wall": 0.0, "cpu": 0.0}
    for _ in range(6):
        wall, cpu = time.perf_counter(), time.process_time()
        left @ right
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        best = {"wall": max(best["wall"], 2 * 2048**3 / wall), "cpu": max(best["cpu"], 2 * 2048**3 / cpu)}
    return best


def memory(field: str) -> float:
    """Megabytes that this process holds (`VmRSS`) or has held (`VmHWM`)."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) / 1024


def show(row: dict) -> None:
    print(
        f"{row['dtype']:9} {row['method']:17} {row['tokens']:7} tokens {row['wall']:8.2f} s {row['cpu']:8.2f} s cpu "
        f"{row['tokens'] / row['wall']:8.0f} tok/s  share {row['share']:.2f} (cpu {row['share_cpu']:.2f}, peak "
        f"{row['peak_gflops']:.0f} GF/s)  peak {row['peak_mb']:6.0f} MB",
        flush=True,
    )


def compare(rows: list[dict], dtypes: list[str]) -> None:
    table = {(row["dtype"], row["method"]): row for row in rows}
    pairs = [(dtype, method, dtype) for dtype in dtypes for method in (PADDED, SINGLE)]
    if {"float32", "bfloat16"} <= set(dtypes):
        pairs.append(("float32", PADDED, "bfloat16"))
    print(f"\n{'against':28} {'ours':9} {'wall':>6} {'cpu':>6} {'memory':>7} {'largest difference, nats/token':>31}")
    for base, method, own in pairs:
        theirs, ours = table[base, method], table[own, OURS]
        worst = max(abs(a - b) for a, b in zip(theirs["scores"], ours["scores"], strict=True))
        wall, cpu = theirs["wall"] / ours["wall"], theirs["cpu"] / ours["cpu"]
        print(
            f"{method + ', ' + base:28} {own:9} {wall:5.2f}x {cpu:5.2f}x "
            f"{ours['peak_mb'] / max(theirs['peak_mb'], 1):7.2f} {worst:31.2e}"
        )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
