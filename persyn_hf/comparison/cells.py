"""Cells of a comparison: a student trained on one set with one seed, and evaluated. Finished cells are kept.

A cell is identified by its inputs, so policies that choose the same teachers share a cell, and a later call reuses
every cell whose inputs have not changed.
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
    """Prompts and answers on which every student is evaluated.

    Args:
        prompts (`Dataset`): Held-out prompts.
        answers (`Dataset`, *optional*): Teachers' answers to these prompts, for the likelihood.
        quality (`Quality`): Quality function for the students' answers.
        digest (`str`): Digest of all of these.
    """

    prompts: Dataset
    answers: Dataset | None
    quality: Quality
    digest: str


def identify(parts: object) -> str:
    """Returns twelve hex digits that identify values and the library's version; see `run.fingerprints`."""
    return fingerprint(parts)[:12]


@dataclass(frozen=True)
class Cell:
    """One student to train and evaluate.

    Args:
        folder (`Path`): Folder of the cell; its name identifies data, recipe, student and seed.
        data (`Dataset`): Personalised set.
        student (`ComparedStudent`): Model to train, and settings to run it afterwards.
        training (`Training`): Training recipe.
        seed (`int`): Random seed.
        held_out (`HeldOut`): Evaluation data.
        settings (`Compare`): Evaluation settings.
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
        """Digest of the evaluation's data and settings."""
        scorer = Keyed(self.student, self.student.unkeyed | {"model", "revision", "endpoint", "name", "family"})
        return identify([self.held_out.digest, self.settings.decodings, self.settings.lm_eval, scorer])

    @property
    def results(self) -> Path:
        """File of the scores; it exists once the cell is finished."""
        return self.folder / f"evaluation-{self.evaluation}.json"


def run_cell(cell: Cell) -> list[Judged]:
    """Trains and evaluates one student, or reads the results of an earlier call.

    Returns:
        `list[Judged]`: Results, one per evaluation.
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
    """Runs cells in parallel processes.

    Args:
        cells (`Sequence[Cell]`): Cells to run; those with the same results file run once.
        processes (`int`): Number of processes. Each uses one GPU, in turn, or its share of the cores.

    Yields:
        `Cell`: Cells in the order in which they finish.

    Raises:
        StudentError: If a process is killed. Finished cells are kept.
    """
    todo = {cell.results: cell for cell in cells if not cell.results.exists()}
    spawn = multiprocessing.get_context("spawn")  # a process that has used torch or a GPU must not be forked
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
                f"One of {processes} training processes was killed, probably because memory ran out. Finished "
                "students are kept; run again with fewer `compare.processes`."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _settle(places: Any, processes: int, gpus: int) -> None:
    """Assigns a new process its GPU, or its share of the cores."""
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
