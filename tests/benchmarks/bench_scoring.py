"""Scoring against the loops that people write: time, useful arithmetic, memory, and the same scores.

    python -m tests.benchmarks.bench_scoring                                  # tiny synthetic student and answers
    PERSYN_DATA=DIR python -m tests.benchmarks.bench_scoring --model SMOLLM2  # 32 prompts x 12 real teachers
    python -m tests.benchmarks.bench_scoring --device cuda --size 1b          # a random student of 1B weights on a GPU

Every measurement is a process of its own: peak memory is that process's (or the GPU's), above what it held once the
weights were there. `share` is 2 x parameters x tokens of the unshared problem per second, over the measured matmul
peak of the same type on the same threads. Ratios are given by wall clock and by processor time, which a busy machine
disturbs less. Errors are per answer, in nats/token, against one sequence at a time in float64.
"""

import argparse
import ctypes
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PADDED, SINGLE, OURS, REFERENCE = "padded loop of 8", "one at a time", "persyn_hf", "float64 reference"

#: What is aimed at: against the padded loop, against one at a time, share of the peak, share of the loop's memory.
TARGETS = {PADDED: 2.5, SINGLE: 1.6, "share": 0.8, "memory": 0.25}


def main() -> None:
    options = parse()
    if options.child:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        options.model = options.model or synthetic_student(scratch, 8192, options.size)
        rows = []
        for dtype in options.dtype:
            for method in (PADDED, SINGLE, OURS):
                rows.append(child(options, method=method, dtype=dtype))
                show(rows[-1])
        compare(rows, options.dtype)
        if options.reference:
            errors(rows, child(options, method=REFERENCE, dtype="float64"), options.dtype)
        vocabulary(options, scratch)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    data = os.environ.get("PERSYN_DATA")
    parser.add_argument("--data", default=data, help="folder with instruct_zoo.parquet; synthetic answers without it")
    parser.add_argument("--model", help="student checkpoint; a random one without it")
    parser.add_argument("--size", choices=["tiny", "1b"], default="tiny", help="of the random student")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--teachers", type=int, default=12)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--reference", type=int, default=24, help="answers that are held against float64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--method", default=OURS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def child(options: argparse.Namespace, **changes) -> dict:
    settings = vars(options) | {"child": None} | changes
    command = [sys.executable, "-m", "tests.benchmarks.bench_scoring", "--child"]
    for name in ("data", "model", "prompts", "teachers", "dtype", "reference", "device", "threads", "method"):
        if settings[name] is not None:
            command += [f"--{name}", str(settings[name])]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    return json.loads(finished.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict:
    import torch

    from persyn_hf.scoring.engine import score_rendered
    from persyn_hf.scoring.student import load_student

    if options.threads:
        torch.set_num_threads(options.threads)
    dtype = options.dtype[0]
    sharing = None if options.method == OURS else "sdpa"
    student = load_student(options.model, dtype=dtype, device=options.device, attn_implementation=sharing)
    parameters = sum(weight.numel() for weight in load_weights(options.model))
    answers = zoo(options, student.tokenizer) if options.data else synthetic_answers(options, student.model)
    if options.method == REFERENCE:
        return {"scores": padded_loop(student.model, answers[: options.reference], 1)}
    peak_flops = matmul_peak(getattr(torch, dtype), options.device)
    run = {
        PADDED: lambda some: padded_loop(student.model, some, 8),
        SINGLE: lambda some: padded_loop(student.model, some, 1),
        OURS: lambda some: [score.learnability for score in score_rendered(student, some)],
    }[options.method]
    run([min(answers, key=lambda answer: len(answer.ids))])
    for weight in student.model.parameters():
        weight.sum()  # mapped from the file: held from its first use on, which must not count as ours
    memory = PeakMemory(options.device)
    wall, cpu = time.perf_counter(), time.process_time()
    scores = run(answers)  # ends with numbers in Python, so a GPU has finished too
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = sum(len(answer.ids) for answer in answers)
    flops = 2 * parameters * tokens
    return {
        "method": options.method,
        "dtype": dtype,
        "tokens": tokens,
        "wall": wall,
        "cpu": cpu,
        "share": flops / wall / peak_flops["wall"],
        "share_cpu": flops / cpu / peak_flops["cpu"],
        "peak_gflops": peak_flops["wall"] / 1e9,
        "peak_mb": memory.above(),
        "scores": scores,
    }


def load_weights(folder: str) -> list:
    """The checkpoint's tensors, each once: a tied head is no second set of weights."""
    from safetensors import safe_open

    shapes = []
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            shapes += [weights.get_tensor(name) for name in weights.keys()]  # noqa: SIM118 - no mapping
    return shapes


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
            ids, mask = ids.to(model.device), mask.to(model.device)
            logits = model(input_ids=ids, attention_mask=mask).logits
            logits = logits if logits.dtype == torch.float64 else logits.float()
            logprobs = torch.log_softmax(logits[:, :-1], dim=-1).gather(2, ids[:, 1:, None])[..., 0]
            for row, answer in enumerate(batch):
                first, last = answer.span
                scores.append(logprobs[row, first - 1 : last - 1].mean().item())
    return scores


def zoo(options: argparse.Namespace, tokenizer) -> list:
    import pyarrow.parquet

    from persyn_hf.models.rendering import render_answers

    table = pyarrow.parquet.read_table(Path(options.data) / "instruct_zoo.parquet").to_pydict()
    ids = list(dict.fromkeys(table["prompt_id"]))
    chosen = set(random.Random(0).sample(ids, options.prompts))
    teachers = set(list(dict.fromkeys(table["teacher"]))[: options.teachers])
    rows = [i for i, name in enumerate(table["teacher"]) if table["prompt_id"][i] in chosen and name in teachers]
    prompts, texts = ([table[column][row] for row in rows] for column in ("prompt", "completion"))
    rendered = render_answers(tokenizer, prompts, texts, ["stop"] * len(rows))
    return [answer for answer in rendered if len(answer.ids) <= 2048]


def synthetic_answers(options: argparse.Namespace, model) -> list:
    from persyn_hf.models.rendering import Rendered

    draw, size = random.Random(0), model.config.vocab_size
    answers = []
    for _ in range(options.prompts):
        prompt = tuple(draw.choices(range(size), k=draw.randint(20, 120)))
        for _ in range(options.teachers):
            length = min(int(draw.lognormvariate(5.3, 0.7)) + 1, 1500)
            answers.append(Rendered(prompt, tuple(draw.choices(range(size), k=length))))
    return answers


SIZES = {
    "tiny": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
             "num_key_value_heads": 2},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8},
}  # fmt: skip


def synthetic_student(scratch: str, vocabulary: int, size: str = "tiny") -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.scoring.models import tokenizer

    torch.manual_seed(0)
    folder = f"{scratch}/{vocabulary}"
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=2048, **SIZES[size])
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def matmul_peak(dtype, device: str) -> dict[str, float]:
    import torch

    size = 2048 if device == "cpu" else 8192
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = {"wall": 0.0, "cpu": 0.0}
    for _ in range(6):
        wall, cpu = time.perf_counter(), time.process_time()
        (left @ right)[0, 0].item()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        best = {"wall": max(best["wall"], 2 * size**3 / wall), "cpu": max(best["cpu"], 2 * size**3 / cpu)}
    return best


class PeakMemory:
    """Megabytes that this process, or its GPU, holds at most from here on, above what it holds now."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cpu":
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # else what loading left behind would count as held
            self.before = self._status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts here, not at loading
        else:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / 2**20

    def above(self) -> float:
        if self.device == "cpu":
            return self._status("VmHWM") - self.before
        import torch

        return torch.cuda.max_memory_allocated() / 2**20 - self.before

    @staticmethod
    def _status(field: str) -> float:
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
    print(f"\n{'against':28} {'ours':9} {'wall':>6} {'cpu':>6} {'target':>6} {'memory':>7} {'difference':>11}")
    for base, method, own in pairs:
        theirs, ours = table[base, method], table[own, OURS]
        worst = max(abs(a - b) for a, b in zip(theirs["scores"], ours["scores"], strict=True))
        wall, cpu = theirs["wall"] / ours["wall"], theirs["cpu"] / ours["cpu"]
        print(
            f"{method + ', ' + base:28} {own:9} {wall:5.2f}x {cpu:5.2f}x {TARGETS[method]:5.1f}x "
            f"{ours['peak_mb'] / max(theirs['peak_mb'], 1):7.2f} {worst:11.2e}"
        )
    for dtype in dtypes:
        row = table[dtype, OURS]
        print(f"share of the {dtype} peak: {row['share']:.2f} (cpu {row['share_cpu']:.2f}), target {TARGETS['share']}")


def errors(rows: list[dict], reference: dict, dtypes: list[str]) -> None:
    """How far every way of scoring is from float64, answer by answer."""
    print(f"\nagainst float64, {len(reference['scores'])} answers, nats/token:")
    for row in rows:
        off = [abs(a - b) for a, b in zip(row["scores"], reference["scores"], strict=False)]
        print(f"{row['dtype']:9} {row['method']:17} mean {sum(off) / len(off):.1e}  largest {max(off):.1e}")


def vocabulary(options: argparse.Namespace, scratch: str) -> None:
    """Peak memory of the same answers under a vocabulary of twice the size."""
    fixed = {"method": OURS, "dtype": "float32", "data": None, "prompts": min(options.prompts, 4)}
    small, large = (child(options, model=synthetic_student(scratch, size), **fixed) for size in (16384, 32768))
    print(f"\nvocabulary 16,384 -> 32,768: peak {small['peak_mb']:.0f} -> {large['peak_mb']:.0f} MB above the weights")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
