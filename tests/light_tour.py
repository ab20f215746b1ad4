"""What must work in a light installation, end to end; prints what came of it as JSON.

    python light_tour.py FOLDER [--hide]

Stands alone, so that an environment without any test package can run it. `FOLDER` holds `published/`, a personalised
set that was saved elsewhere. `--hide` hides the heavy packages of a full installation first.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}

#: Modules that run a model in this process, or train one, and import torch at their top.
MODEL_MODULES = {
    "persyn_hf.generation.local", "persyn_hf.routing.backbone", "persyn_hf.routing.roster",
    "persyn_hf.routing.training", "persyn_hf.routing.tuning", "persyn_hf.scoring.attention",
    "persyn_hf.scoring.batches", "persyn_hf.scoring.engine", "persyn_hf.scoring.packing",
    "persyn_hf.scoring.parts", "persyn_hf.scoring.prepacked", "persyn_hf.scoring.reward_model",
    "persyn_hf.scoring.streaming", "persyn_hf.scoring.student",
}  # fmt: skip
PROMPTS = [f"Say number {number}." for number in range(8)]
LABELS = {"0": "a", "1": "b"}


class Server(BaseHTTPRequestHandler):
    """A teacher that says what it was asked, and a router behind Text Embeddings Inference's routes."""

    asked: list[str] = []  # noqa: RUF012 - one list for all requests

    def do_GET(self) -> None:
        answers = {
            "/v1/models": {"object": "list", "data": [{"id": "org/a"}, {"id": "org/b"}]},
            "/info": {"model_type": {"classifier": {"id2label": LABELS}}, "max_client_batch_size": 4},
        }
        self._send(answers.get(self.path), 200 if self.path in answers else 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(self.path)
        if self.path == "/predict":
            even = [int(text.rstrip(".").split()[-1]) % 2 == 0 for (text,) in body["inputs"]]
            scores = [{"a": 1.5 if first else -0.5, "b": 0.25} for first in even]
            self._send([[{"label": name, "score": value} for name, value in row.items()] for row in scores])
            return
        text = f"{body['model']}: {body['messages'][-1]['content']}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}
        common = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        self._send(common | {"choices": [choice], "usage": usage})

    def _send(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def served() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def modules() -> dict[str, str]:
    """Modules that cannot be imported, with the reason."""
    import persyn_hf

    failed = {}
    for module in pkgutil.walk_packages(persyn_hf.__path__, "persyn_hf."):
        if module.name in MODEL_MODULES or module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ImportError as error:
            failed[module.name] = str(error)
    return failed


def configuration(folder: Path, url: str) -> tuple[Path, dict[str, Any]]:
    rows = [json.dumps({"prompt": text, "answer": "42"}) for text in PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    settings = {
        "output_dir": str(folder / "run"),
        "prompts": {"source": str(folder / "prompts.jsonl"), "answer_column": "answer"},
        "probe": {"size": 3},
        "teachers": [{"name": n, "model": f"org/{n}", "endpoint": url, "sampling": {"max_tokens": 50}} for n in "ab"],
        "student": {"model": "org/student"},
        "quality": {"verifier": "exact"},
        "router": {"backbone": "org/backbone"},
    }
    path = folder / "run.yaml"
    path.write_text(json.dumps(settings))  # JSON is YAML
    return path, settings


def commands(folder: Path, config: Path) -> dict[str, Any]:
    """Exit code and output of commands; `--help` of every one."""
    import typer
    from typer.testing import CliRunner

    from persyn_hf.cli import app

    def call(*arguments: Any) -> dict[str, Any]:
        before = len(Server.asked)
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        said = done.output if done.exception is None or isinstance(done.exception, SystemExit) else str(done.exception)
        return {"code": done.exit_code, "said": said, "asked": len(Server.asked) - before}

    def helps(command: Any, words: Sequence[str]) -> Iterator[tuple[str, int]]:
        yield " ".join(words), call(*words, "--help")["code"]
        for name, inner in getattr(command, "commands", {}).items():
            yield from helps(inner, [*words, name])

    ledger = folder / "run" / "ledger.sqlite"
    return {
        "help": dict(helps(typer.main.get_command(app), [])),
        "doctor": call("doctor"),
        "doctor config": call("doctor", config),
        "plan": call("plan", config),
        "run": call("run", config, "--quiet"),
        "run until probe": call("run", config, "--quiet", "--until", "probe"),
        "again": call("run", config, "--quiet", "--until", "probe"),
        "ledger show": call("ledger", "show", ledger),
        "ledger export": call("ledger", "export", ledger, folder / "answers.jsonl"),
        "exported": len((folder / "answers.jsonl").read_text().splitlines()),
    }


def functions(folder: Path, url: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Values of the functions that need no model."""
    import numpy as np
    from datasets import Dataset

    import persyn_hf

    prompts = Dataset.from_dict({"prompt": PROMPTS})
    teachers = settings["teachers"]
    probe = persyn_hf.sample_probe(prompts, 3, seed=1)
    answers = persyn_hf.generate_parallel(probe, teachers, ledger=folder / "f.sqlite", progress=False)
    routed = prompts.map(persyn_hf.persyn_route, batched=True, fn_kwargs={"endpoint": url})
    personal = persyn_hf.generate_routed(routed, teachers, ledger=folder / "f.sqlite", progress=False)
    by_map = prompts.map(persyn_hf.persyn_generate, batched=True, fn_kwargs={"teacher": teachers[0]})
    loaded = persyn_hf.load_personalized(folder / "published", cache_dir=folder / "cache")
    table = persyn_hf.personalize(personal)
    return {
        "probe": len(probe),
        "answers": answers.num_rows,
        "routes": routed["route"][:],
        "scores": routed["route_scores"][0],
        "completions": personal["completion"][:],
        "mapped": by_map["completion"][:],
        "loaded": loaded.dataset["completion"][0],
        "personalised": table[0]["completion"],
        "quality": persyn_hf.persyn_quality(
            {"prompt": "x", "completion": "4", "answer": "4"}, verifier="exact", answer_column="answer"
        ),
        "shared": persyn_hf.allocate(np.array([[1.0, 0.0], [0.0, 2.0]]), ["a", "b"]).routes,
    }


def refusals(folder: Path, url: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What is said where a package is missing."""
    import numpy as np
    from datasets import Dataset

    import persyn_hf

    def said(act: Callable[[], object]) -> list[Any]:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
            return [type(error).__name__, str(error), isinstance(error, persyn_hf.PersynError)]
        return ["nothing", "", False]

    local = [{"name": "here", "model": str(folder), "backend": "local"}]
    tgi = [{"name": "tgi", "model": "org/a", "endpoint": url, "api": "tgi", "preflight": False}]
    answers = Dataset.from_list(
        [{"prompt_id": "1", "prompt": "x", "teacher": name, "completion": "y", "error": None} for name in "ab"]
    )
    many = np.array([[float(row % 3), 1.0] for row in range(30)])
    asked = len(Server.asked)
    return {
        "score": said(lambda: persyn_hf.score(answers, str(folder), {"verifier": "exact"})),
        "load a router": said(lambda: persyn_hf.PersynRouter.from_pretrained(str(folder))),
        "route here": said(lambda: persyn_hf.persyn_route({"prompt": "x"}, router=str(folder))),
        "train a router": said(lambda: persyn_hf.train_router),
        "allocate": said(lambda: persyn_hf.allocate(many, ["a", "b"], max_share=0.5)),
        "ask here": said(lambda: persyn_hf.generate_parallel(["x"], local, progress=False)),
        "ask a TGI": said(lambda: persyn_hf.generate_parallel(["x"], tgi, progress=False)),
        "train a student": said(lambda: persyn_hf.train_student(answers, str(folder), folder / "student")),
        "verify": said(lambda: persyn_hf.persyn_quality(answers[0], verifier="math")),
        "asked": len(Server.asked) - asked,
    }


def main() -> None:
    folder = Path(sys.argv[1])
    if "--hide" in sys.argv:
        from without import hide  # type: ignore[import-not-found] # beside this file

        hide()
    import persyn_hf

    with served() as url:
        config, settings = configuration(folder, url)
        found = {"file": persyn_hf.__file__, "modules": modules(), "commands": commands(folder, config)}
        found |= {"functions": functions(folder, url, settings), "refusals": refusals(folder, url, settings)}
    found["heavy"] = sorted({"torch", "transformers", "scipy", "matplotlib"} & set(sys.modules))
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
