"""One cell of a comparison: a student trained on one set with one seed, and judged. Finished cells are kept.

A cell is known by what it was made from, so two policies that choose the same teachers share one, and whatever was
not changed since an earlier call is not done again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf import __version__
from persyn_hf.comparison.evaluation import Judged, answer_held_out, held_out_nll, run_benchmarks
from persyn_hf.config import Compare, Quality, Student, Training
from persyn_hf.finetune import train_student
from persyn_hf.runfolder import write_atomically

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class HeldOut:
    """What every student is judged on.

    Args:
        prompts (`Dataset`): Held-out prompts.
        answers (`Dataset`, *optional*): Teachers' answers to them, for the likelihood.
        quality (`Quality`): What judges the students' own answers.
        digest (`str`): Of all of it.
    """

    prompts: Dataset
    answers: Dataset | None
    quality: Quality
    digest: str


def identify(parts: Any) -> str:
    """Twelve hex digits that stand for plain values and the library's version."""
    text = json.dumps([__version__, parts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def run_cell(
    folder: Path,
    data: Dataset,
    student: Student,
    training: Training,
    seed: int,
    held_out: HeldOut,
    settings: Compare,
) -> list[Judged]:
    """Trains and judges one student, or reads what an earlier call found.

    Args:
        folder (`Path`): The cell's own; its name stands for data, recipe, student and seed.
        data (`Dataset`): The personalised set.
        student (`Student`): What is trained, and how it is run afterwards.
        training (`Training`), seed (`int`): The recipe.
        held_out (`HeldOut`), settings (`Compare`): What it is judged on and by.

    Returns:
        `list[Judged]`: One per evaluation.
    """
    benchmarks = settings.lm_eval.model_dump(mode="json") if settings.lm_eval is not None else None
    decodings = [decoding.model_dump(mode="json") for decoding in settings.decodings]
    evaluation = identify([held_out.digest, decodings, benchmarks])
    file = folder / f"evaluation-{evaluation}.json"
    if file.exists():
        return [Judged.from_dict(one) for one in json.loads(file.read_text(encoding="utf-8"))]
    folder.mkdir(parents=True, exist_ok=True)
    trained = train_student(
        data, student.model, folder / "student", training, revision=student.revision, seed=seed, progress=False
    )
    now = student.model_copy(update={"model": str(trained.path), "revision": None, "endpoint": None})
    judged = list(_judge(now, folder, held_out, settings, seed, evaluation))
    write_atomically(folder / "training.json", json.dumps(trained.report.to_dict(), indent=2) + "\n")
    write_atomically(file, json.dumps([one.to_dict() for one in judged]) + "\n")
    if not settings.keep_students:
        shutil.rmtree(trained.path)
    return judged


def _judge(
    student: Student, folder: Path, held_out: HeldOut, settings: Compare, seed: int, evaluation: str
) -> Sequence[Judged]:
    judged, answers = answer_held_out(student, held_out.prompts, settings.decodings, held_out.quality, seed)
    answers.to_parquet(folder / f"answers-{evaluation}.parquet")
    if held_out.answers is not None:
        judged.append(held_out_nll(student, held_out.answers))
    if settings.lm_eval is not None:
        judged += run_benchmarks(student, settings.lm_eval, seed)
    return judged
