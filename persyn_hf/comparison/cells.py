"""One cell of a comparison: a student trained on one set with one seed, and judged. Finished cells are kept.

A cell is known by what it was made from, so two policies that choose the same teachers share one, and whatever was
not changed since an earlier call is not done again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf.comparison.evaluation import Judged, answer_held_out, held_out_nll, run_benchmarks
from persyn_hf.config import Compare, ComparedStudent, Quality, Student, Training
from persyn_hf.errors import StudentError
from persyn_hf.models.device import gpu_count
from persyn_hf.models.workers import share_cores
from persyn_hf.run.fingerprints import Keyed, fingerprint
from persyn_hf.students.train import train_student
from persyn_hf.tables import write_atomically

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class HeldOut:
    """The prompts and answers that every student is judged on.

    Args:
        prompts (`Dataset`): Held-out prompts.
        answers (`Dataset`, *optional*): Teachers' answers to them, for the likelihood.
        quality (`Quality`): The judge of the students' own answers.
        digest (`str`): Digest of all of it.
    """

    prompts: Dataset
    answers: Dataset | None
    quality: Quality
    digest: str


def identify(parts: Any) -> str:
    """Twelve hex digits for what values stand for and the library's version; see `run.fingerprints`."""
    return fingerprint(parts)[:12]


@dataclass(frozen=True)
class Cell:
    """One student to be.

    Args:
        folder (`Path`): The cell's own; its name stands for data, recipe, student and seed.
        data (`Dataset`): The personalised set.
        student (`ComparedStudent`): What is trained, and how it is run afterwards.
        training (`Training`), seed (`int`): The recipe.
        held_out (`HeldOut`), settings (`Compare`): What it is judged on and by.
    """

    folder: Path
    data: Dataset
    student: ComparedStudent
    training: Training
    seed: int
    held_out: HeldOut
    settings: Compare

    @property
    def evaluation(self) -> str:
        """Stands for what the student is judged on and by."""
        scorer = Keyed(self.student, self.student.unkeyed | {"model", "revision", "endpoint", "name", "family"})
        return identify([self.held_out.digest, self.settings.decodings, self.settings.lm_eval, scorer])

    @property
    def results(self) -> Path:
        """The file of the scores, once it is finished."""
        return self.folder / f"evaluation-{self.evaluation}.json"


def run_cell(cell: Cell) -> list[Judged]:
    """Trains and judges one student, or reads what an earlier call found.

    Returns:
        `list[Judged]`: One per evaluation.
    """
    if cell.results.exists():
        return [Judged.from_dict(one) for one in json.loads(cell.results.read_text(encoding="utf-8"))]
    student = cell.student
    cell.folder.mkdir(parents=True, exist_ok=True)
    trained = train_student(
        cell.data,
        student.model,
        cell.folder / "student",
        cell.training,
        revision=student.revision,
        seed=cell.seed,
        progress=False,
    )
    now = student.model_copy(update={"model": str(trained.path), "revision": None, "endpoint": None})
    judged = list(_judge(now, cell))
    write_atomically(cell.folder / "training.json", json.dumps(trained.report.to_dict(), indent=2) + "\n")
    write_atomically(cell.results, json.dumps([one.to_dict() for one in judged]) + "\n")
    if not cell.settings.keep_students:
        shutil.rmtree(trained.path)
    return judged


def run_cells(cells: Sequence[Cell], processes: int) -> Iterator[Cell]:
    """Finishes cells in processes of their own, side by side.

    Args:
        cells (`Sequence[Cell]`): Those that share a folder are done once.
        processes (`int`): Each has one GPU to itself, in turn, or its share of the cores.

    Yields:
        `Cell`: As they are finished.

    Raises:
        StudentError: If a process is killed. What was finished stays.
    """
    todo = {cell.results: cell for cell in cells if not cell.results.exists()}
    spawn = multiprocessing.get_context("spawn")  # what has used torch or a GPU must not be forked
    places = spawn.SimpleQueue()
    for place in range(processes):
        places.put(place)
    with ProcessPoolExecutor(processes, spawn, _settle, (places, processes, gpu_count())) as pool:
        running = {pool.submit(run_cell, cell): cell for cell in todo.values()}
        try:
            for done in as_completed(running):
                done.result()
                yield running[done]
        except BrokenProcessPool as error:
            raise StudentError(
                f"One of {processes} training processes was killed, which is often for want of memory. Finished "
                "students are kept; run again with fewer `compare.processes`."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _settle(places: Any, processes: int, gpus: int) -> None:
    """Gives a new process its GPU, or its share of the cores."""
    place = places.get()
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[place % gpus]
    else:
        share_cores(processes)


def _judge(student: Student, cell: Cell) -> Sequence[Judged]:
    held_out, settings = cell.held_out, cell.settings
    judged, answers = answer_held_out(student, held_out.prompts, settings.decodings, held_out.quality, cell.seed)
    answers.to_parquet(cell.folder / f"answers-{cell.evaluation}.parquet")
    if held_out.answers is not None:
        judged.append(held_out_nll(student, held_out.answers))
    if settings.lm_eval is not None:
        judged += run_benchmarks(student, settings.lm_eval, cell.seed)
    return judged
