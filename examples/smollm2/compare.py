"""The comparison with SmolLM2-135M on the demonstration's instructions: `python examples/smollm2/compare.py`.

The student is the model itself, the teachers are the demonstration's four ways to ask it, and a program checks the
answers. A fine-tuning of 135 million weights takes two cores some minutes, so there are few policies and seeds; on a
GPU add more under `compare`. It may be stopped at any time and goes on when called again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from persyn_hf.config import RunConfig
from persyn_hf.demo.prompts import demo_prompts
from persyn_hf.demo.settings import demo_settings, prepare_demo

TRAIN, HELD_OUT = 160, 60


def write_prompts(folder: Path) -> None:
    """Splits the demonstration's instructions into those to train on and those to judge by."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = demo_prompts(TRAIN + HELD_OUT)
    for name, part in (("train", rows[:TRAIN]), ("held-out", rows[TRAIN:])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def settings(models: Path, folder: Path) -> dict[str, Any]:
    """The demonstration's run with the sections `training` and `compare`."""
    data = demo_settings(models, folder)
    data["prompts"] = {"source": str(folder / "train.jsonl"), "answer_column": "answer"}
    data["probe"] = {"size": 80}
    data["publish"] = {"keep_truncated": True}  # a cut answer teaches too, and learns no end of turn
    data["training"] = {
        "num_train_epochs": 2, "learning_rate": 2e-4, "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2, "max_length": 384, "lora": {"r": 16}, "save_steps": 10,
    }  # fmt: skip
    data["compare"] = {
        "students": [{"name": "SmolLM2-135M", "family": "SmolLM2", **data["student"]}],
        "held_out": {"source": str(folder / "held-out.jsonl"), "answer_column": "answer"},
        "policies": ["strong", "car", "random", "persyn"],
        "seeds": [0, 1],
        "decodings": [{"name": "greedy", "temperature": 0.0, "max_tokens": 128}],
        "nll_teachers": [],
    }
    return data


def main(models: Path, folder: Path) -> None:
    from rich.console import Console

    from persyn_hf.cli.app import quiet_libraries
    from persyn_hf.comparison.compare import compare
    from persyn_hf.comparison.presentation import print_comparison

    quiet_libraries(quiet=True)
    prepare_demo(models)
    write_prompts(folder)
    result = compare(RunConfig.from_dict(settings(models, folder), source="smollm2"))
    print_comparison(result.summary, result.facts, Console(width=150))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path(".models"), help="Where `make demo` lays the weights out.")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/smollm2"))
    arguments = parser.parse_args()
    main(arguments.models, arguments.output_dir)
