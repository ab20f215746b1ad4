"""Configuration of the demo: four teachers that share one model but differ in system prompt and sampling."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

from persyn_hf.config import RunConfig
from persyn_hf.demo.prompts import demo_prompts
from persyn_hf.demo.weights import MINILM, SMOLLM2, prepare_models
from persyn_hf.packages import require

PROBE_PROMPTS = 160
OTHER_PROMPTS = 320

#: System prompts and sampling parameters of the teachers.
TEACHERS: dict[str, dict[str, Any]] = {
    "terse": {
        "system_prompt": "Answer with one very short sentence like this one: The sea is wide and blue.",
        "sampling": {"temperature": 0.0, "max_tokens": 128},
    },
    "list-maker": {
        "system_prompt": "Answer every request with a numbered list of three lines:\n1. first\n2. second\n3. third",
        "sampling": {"temperature": 0.8, "max_tokens": 128},
    },
    "storyteller": {
        "system_prompt": "You are a storyteller who always writes two long paragraphs with a blank line between them.",
        "sampling": {"temperature": 0.7, "top_p": 0.95, "max_tokens": 128},
    },
    "hot": {"sampling": {"temperature": 1.0, "top_p": 0.95, "max_tokens": 128}},
}


def demo_settings(models: str | os.PathLike[str], output_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the demo's configuration as plain values, like those in a YAML file.

    Args:
        models (`str` or `PathLike`): Folder filled by [`prepare_demo`].
        output_dir (`str` or `PathLike`): Run folder.
    """
    folder = Path(models)
    smollm2, dtype = str(folder / SMOLLM2), _fastest_dtype()
    shared = {"model": smollm2, "backend": "local", "dtype": dtype, "batch_size": 64, "license": "apache-2.0"}
    return {
        "output_dir": str(output_dir),
        "seed": 0,
        "prompts": {"source": str(folder / "prompts.jsonl"), "column": "prompt", "answer_column": "answer"},
        "probe": {"size": PROBE_PROMPTS},
        "teachers": [
            {"name": name, **shared, "family": "SmolLM2", **copy.deepcopy(how)} for name, how in TEACHERS.items()
        ],
        "student": {"model": smollm2, "dtype": dtype},
        "quality": {"verifier": "persyn_hf.demo.prompts:share_met"},
        "reward": {"alpha": 0.4, "normalization": "minmax"},
        "router": {"backbone": str(folder / MINILM), "objective": "regression"},
        "publish": {"license": "apache-2.0", "language": ["en"]},
    }


def _fastest_dtype() -> str:
    """Returns bfloat16, which halves the memory, or float32 on CPUs that multiply bfloat16 much more slowly."""
    from persyn_hf.models.device import multiplies_bfloat16

    return "bfloat16" if multiplies_bfloat16() else "float32"


def prepare_demo(models: str | os.PathLike[str]) -> None:
    """Writes the two checkpoints and the prompts into a folder, unless they exist."""
    require("run the demo", "torch", "transformers")
    prepare_models(models)
    rows = demo_prompts(PROBE_PROMPTS + OTHER_PROMPTS)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (Path(models) / "prompts.jsonl").write_text(text, encoding="utf-8")


def demo_config(models: str | os.PathLike[str], output_dir: str | os.PathLike[str]) -> RunConfig:
    """Returns the demo's validated configuration."""
    return RunConfig.from_dict(demo_settings(models, output_dir), source="the demo's configuration")
