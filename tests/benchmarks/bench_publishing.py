"""Publishing against what it stands on: `Dataset.to_parquet` for staging, `upload_folder` for sending.

    python -m tests.benchmarks.bench_publishing [--rows 100000] [--repeats 3] [--xet]

The rows are synthetic conversations of about 1 kB. Each measurement runs in a process of its own against a Hub on
loopback that runs in another; the two sides of a ratio take turns, and the best of their repeats counts. Anonymous
memory is what a process holds itself; pages of the memory-mapped table are the kernel's to give back at any time.
"send" is a push whose shards `save_personalized` wrote before and whose text is not searched for secrets: what
`upload_folder` does. "whole push" writes the shards and searches the text too.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]


def make_table(rows: int, folder: Path) -> None:
    """Writes rows of a personalised table, batch after batch."""
    import pyarrow as pa
    from datasets import Dataset, Features, List, Value

    message = {"role": Value("string"), "content": Value("string")}
    features = Features(
        {
            "prompt": List(message), "completion": List(message), "prompt_id": Value("string"),
            "teacher": Value("string"), "route_scores": List(Value("float32")), "finish_reason": Value("string"),
            "prompt_tokens": Value("int64"), "completion_tokens": Value("int64"),
        }
    )  # fmt: skip
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(random.choice(letters, size)) for size in random.integers(2, 10, 20_000)])
    sentences = np.array([" ".join(line) + ". " for line in words[random.integers(0, len(words), (20_000, 12))]])
    teachers = np.array([f"teacher-{number}" for number in range(19)])
    path = folder / "rows.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, features.arrow_schema) as writer:
        for start in range(0, rows, 10_000):
            count = min(10_000, rows - start)
            text = ["".join(line) for line in sentences[random.integers(0, len(sentences), (count, 12))]]
            table = {
                "prompt": [[{"role": "user", "content": line[:150]}] for line in text],
                "completion": [[{"role": "assistant", "content": line[150:]}] for line in text],
                "prompt_id": [f"{start + n:016x}" for n in range(count)],
                "teacher": teachers[random.integers(0, 19, count)],
                "route_scores": list(random.normal(size=(count, 19)).astype(np.float32)),
                "finish_reason": ["stop"] * count,
                "prompt_tokens": random.integers(10, 60, count), "completion_tokens": random.integers(100, 400, count),
            }  # fmt: skip
            writer.write_table(pa.table(table, schema=features.arrow_schema))
    assert len(Dataset.from_file(str(path))) == rows


class PeakMemory:
    """The peak of this process's anonymous and resident memory above where it began, in MB; sampled at 100 Hz."""

    def __enter__(self):
        self.base, self.peak, self.done = _memory(), _memory(), threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while not self.done.wait(0.01):
            self.peak = {name: max(value, self.peak[name]) for name, value in _memory().items()}

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.above = {name: (self.peak[name] - self.base[name]) / 1024 for name in self.base}


def _memory() -> dict[str, int]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[name].split()[0]) for name in ("RssAnon", "VmRSS")}


def measure(what: str, table: str, folder: str) -> dict[str, float]:
    """Runs in a child: one measurement, in seconds and MB."""
    from datasets import Dataset, disable_progress_bars
    from huggingface_hub import HfApi, utils

    from persyn_hf import push_personalized, save_personalized

    disable_progress_bars()
    utils.disable_progress_bars()
    data = Dataset.from_file(table)
    _warm(data, folder)
    with PeakMemory() as memory:
        began = time.perf_counter()
        if what == "to_parquet":
            data.to_parquet(f"{folder}/plain.parquet")
        elif what == "save":
            save_personalized(data, folder, allow_secrets=True)  # the search has its own line, "whole push"
        elif what == "upload_folder":
            api = HfApi()
            api.create_repo("me/plain", repo_type="dataset", private=True, exist_ok=True)
            api.upload_folder(repo_id="me/plain", repo_type="dataset", folder_path=f"{folder}/dataset")
        else:
            saved = None if what == "whole push" else folder
            done = push_personalized(data, "me/data", saved=saved, allow_secrets=what == "send")
            assert done.dataset.changed == (what != "unchanged"), what
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "anonymous": memory.above["RssAnon"], "resident": memory.above["VmRSS"]}


def _warm(data, folder: str) -> None:
    """Imports and first calls of everything; what they take is not publishing's."""
    from persyn_hf import save_personalized

    small = data.select(range(2))
    small.to_parquet(f"{folder}/warm.parquet")
    save_personalized(small, f"{folder}/warm")
    (Path(folder) / "warm.parquet").unlink()
    shutil.rmtree(Path(folder) / "warm")


def _child(what: str, work: Path, endpoint: str, xet: bool) -> dict[str, float]:
    environment = os.environ | {
        "HF_ENDPOINT": endpoint, "HF_HOME": str(work / "home"), "HF_TOKEN": "hf_test_token",
        "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_XET": "0" if xet else "1",
    }  # fmt: skip
    command = [sys.executable, "-m", __spec__.name, "--measure", what, str(work / "rows.arrow"), str(work / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def serve() -> None:
    """Runs in a child: the Hub, until standard input closes. A line on it makes the Hub forget everything."""
    from tests.hub_server import Hub

    with Hub() as hub:
        print(hub.endpoint, flush=True)
        for _ in sys.stdin:
            hub.reset()
            for kind in ("blobs", "xet"):
                shutil.rmtree(hub.folder / kind, ignore_errors=True)
            print("empty", flush=True)


def run(rows: int, repeats: int, xet: bool) -> dict[str, float]:
    """All measurements; prints them and returns the ratios."""
    work = Path(tempfile.mkdtemp(prefix="bench-publishing-"))
    hub = subprocess.Popen(
        [sys.executable, "-m", __spec__.name, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    )  # fmt: skip
    best: dict[str, dict[str, float]] = {}

    def take(what: str, endpoint: str) -> None:
        found = _child(what, work, endpoint, xet)
        known = best.setdefault(what, found)
        best[what] = {key: (min if key == "seconds" else max)(value, known[key]) for key, value in found.items()}

    try:
        endpoint = hub.stdout.readline().strip()
        make_table(rows, work)
        (work / "run").mkdir()
        for _ in range(repeats):
            take("to_parquet", endpoint)
            take("save", endpoint)
        (work / "run/plain.parquet").unlink()
        for _ in range(repeats):
            for what in ("upload_folder", "send", "whole push"):
                hub.stdin.write("forget\n")
                hub.stdin.flush()
                hub.stdout.readline()
                take(what, endpoint)
            take("unchanged", endpoint)
        return _print(rows, (work / "rows.arrow").stat().st_size, xet, best)
    finally:
        hub.stdin.close()
        hub.wait()
        shutil.rmtree(work)


def _print(rows: int, size: int, xet: bool, best: dict[str, dict[str, float]]) -> dict[str, float]:
    way = "Xet" if xet else "LFS"
    print(f"{rows:,} rows, {size / 1e6:,.0f} MB in memory, {way}; best time, worst memory")
    for what, found in best.items():
        memory = f"{found['anonymous']:5.0f} MB anonymous, {found['resident']:5.0f} MB resident above the imports"
        print(f"{what:14s} {found['seconds']:7.2f} s   {memory}")
    ratios = {
        "staging": best["to_parquet"]["seconds"] / best["save"]["seconds"],
        "sending": best["send"]["seconds"] / best["upload_folder"]["seconds"],
        "unchanged": best["unchanged"]["seconds"],
    }
    print(f"staging runs at {ratios['staging']:.2f} × the speed of to_parquet (at least 0.9)")
    print(f"sending takes {ratios['sending']:.2f} × the time of upload_folder of the same files (at most 1.1)")
    print(f"a push with nothing changed takes {ratios['unchanged']:.2f} s (under 2)")
    return ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--xet", action="store_true", help="Send by Xet instead of LFS.")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve()
    elif chosen.measure:
        print(json.dumps(measure(*chosen.measure)))
    else:
        run(chosen.rows, chosen.repeats, chosen.xet)
