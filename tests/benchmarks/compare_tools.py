"""Ours beside what people use today, each in a venv of its own, against the same endpoint.

    python -m tests.benchmarks.compare_tools [TOOL ...] [--prompts 2000] [--folder runs/compare]

Every tool asks one endpoint with a cap of 64 and 0.25 s per answer three times: with 64 in flight, with 64 in flight
while it misbehaves (5% 503, 2% reset, 1% half JSON, 0.2% hang), and with 128 in flight. Once more, it is killed when
half of the answers have been sent, and started again in the same folder: what the endpoint then answers beyond the
number of prompts, and beyond what it sent to the dying process, was paid for twice. What cannot be installed or does
not run is reported as such, with the last line that it said.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from tests.benchmarks.endpoint import MIX, Behaviour, answered_before, counters_of, running

HERE = Path(__file__).parent / "tools"
CAP, SERVICE = 64, 0.25
#: Tool: its script, and what it needs.
TOOLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ours": ("persyn.py", ()),
    "aiohttp": ("aiohttp_loop.py", ("aiohttp",)),
    "httpx": ("httpx_loop.py", ("httpx",)),
    "AsyncInferenceClient": ("hub_loop.py", ("huggingface_hub>=2",)),
    "the same in datasets.map": ("hub_map.py", ("huggingface_hub>=2", "datasets>=5")),
    "distilabel": ("distilabel_pipeline.py", ("distilabel[openai]==1.5.3", "requests")),
    # Its extra `inference` wants vLLM; an endpoint needs only this much of it.
    "datatrove": ("trove.py", ("datatrove==0.10.1", "httpx", "aiosqlite", "aiofiles", "orjson", "xxhash")),
    "data-designer": ("data_designer_run.py", ("data-designer==0.9.6",)),
    "bespokelabs-curator": ("curator.py", ("bespokelabs-curator==0.1.31",)),
}
RUN_SECONDS, INSTALL_SECONDS = 180, 900


def python_for(name: str, needs: tuple[str, ...], folder: Path) -> Path | str:
    """The interpreter of a tool's venv, made where it is not there; or why there is none."""
    if not needs:
        return Path(sys.executable)
    place = folder / name.replace(" ", "-")
    python = place / "bin" / "python"
    if not (place / ".ready").exists():
        venv.create(place, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *needs]
        try:
            done = subprocess.run(install, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        except subprocess.TimeoutExpired:
            return f"not installed in {INSTALL_SECONDS} s"
        if done.returncode:
            return f"does not install: {last_line(done.stderr)}"
        (place / ".ready").touch()
    return python


def last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:160] if lines else "no word"


def measured(python: Path, script: str, count: int, concurrency: int, behaviour: Behaviour) -> str:
    """One cell of the table."""
    with running(behaviour) as (url,):
        command = [str(python), str(HERE / script), url, str(count), str(concurrency)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            return f"not done in {RUN_SECONDS} s ({counters_of(url).good} answers sent)"
        if done.returncode:
            return f"exit {done.returncode}: {last_line(done.stderr)}"
        found = json.loads(last_line(done.stdout))
        refused = counters_of(url).refused
    share = count / CAP * SERVICE / found["seconds"]
    return (
        f"{share:.3f} of ideal, {1000 * found['cpu'] / count:.2f} CPU s/1,000, {count - found['answered']} lost, "
        f"{refused} refused, {found['seconds']:.1f} s"
    )


def resumed(python: Path, script: str, count: int) -> str:
    """The last cell: killed half way, and started again."""
    behaviour = Behaviour(CAP, SERVICE, jitter=0.5)  # a server whose answers do not come in waves
    with running(behaviour) as (url,), tempfile.TemporaryDirectory() as folder:
        command = [str(python), str(HERE / script), url, str(count), str(CAP), folder]
        said = Path(folder) / "first.log"
        with said.open("w") as log:
            first = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log)
        deadline = time.monotonic() + RUN_SECONDS
        while counters_of(url).good < count // 2:
            if first.poll() is not None:
                return f"ended before it could be killed: {last_line(said.read_text())}"
            if time.monotonic() > deadline:
                os.killpg(first.pid, signal.SIGKILL)
                return f"not half done in {RUN_SECONDS} s"
            time.sleep(0.05)
        killed = time.monotonic()
        os.killpg(first.pid, signal.SIGKILL)  # its children too
        first.wait()
        before = answered_before(url, killed)
        time.sleep(2 * SERVICE)  # what was in flight finds nobody, or sockets that outlive their process for a moment
        unheard = counters_of(url).good - before
        again = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            found, complained = again.communicate(timeout=RUN_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(again.pid, signal.SIGKILL)
            again.communicate()
            return f"killed at {before}, the rerun not done in {RUN_SECONDS} s"
        if again.returncode:
            return f"killed at {before}, the rerun: exit {again.returncode}: {last_line(complained)}"
        answered = json.loads(last_line(found))["answered"]
        again_sent = counters_of(url).good - unheard - count
        return f"killed at {before}, {again_sent} sent again, {count - answered} lost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", nargs="*", default=list(TOOLS))
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--folder", type=Path, default=Path("runs/compare"))
    options = parser.parse_args()
    runs = {
        "64 in flight": (CAP, Behaviour(CAP, SERVICE)),
        "with faults": (CAP, Behaviour(CAP, SERVICE, faults=MIX)),
        "128 in flight": (2 * CAP, Behaviour(CAP, SERVICE)),
    }
    for name in options.tool:
        script, needs = TOOLS[name]
        python = python_for(name, needs, options.folder.absolute())
        if isinstance(python, str):
            print(f"{name:26s} {python}", flush=True)
            continue
        for run, (concurrency, behaviour) in runs.items():
            cell = measured(python, script, options.prompts, concurrency, behaviour)
            print(f"{name:26s} {run:14s} {cell}", flush=True)
        print(f"{name:26s} {'after kill -9':14s} {resumed(python, script, options.prompts)}", flush=True)


if __name__ == "__main__":
    main()
