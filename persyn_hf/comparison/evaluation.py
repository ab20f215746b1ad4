"""Evaluation of a trained student: its own answers, the likelihood of teachers' answers, and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import Decoding, LmEval, Quality, Sampling, Student, Teacher
from persyn_hf.errors import ConfigError, StudentError
from persyn_hf.models import loading
from persyn_hf.models.device import choose_device
from persyn_hf.models.files import ModelFiles
from persyn_hf.packages import require

if TYPE_CHECKING:
    from datasets import Dataset

NLL = "nll"


@dataclass(frozen=True)
class Judged:
    """Result of one evaluation of one student.

    Args:
        evaluation (`str`): Name of the decoding, `nll`, or benchmark and metric.
        ids (`tuple[str, ...]`): `prompt_id`s, or numbers of a benchmark's documents.
        scores (`tuple[float, ...]`): Score of each id.
        higher_is_better (`bool`, defaults to `True`): Whether higher scores are better.
    """

    evaluation: str
    ids: tuple[str, ...]
    scores: tuple[float, ...]
    higher_is_better: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Judged:
        """Reads the values of [`Judged.to_dict`]."""
        return cls(data["evaluation"], tuple(data["ids"]), tuple(data["scores"]), data["higher_is_better"])


def answer_held_out(
    student: Student, prompts: Dataset, decodings: Sequence[Decoding], quality: Quality, seed: int
) -> tuple[list[Judged], Dataset]:
    """Generates a student's answers to the held-out prompts and scores their quality.

    Args:
        student (`Student`): Trained student.
        prompts (`Dataset`): Table with `prompt_id`, `prompt` and, for verifiers, `answer`.
        decodings (`Sequence[Decoding]`): Decodings (greedy, sampled …).
        quality (`Quality`): Verifier, reward model or judge.
        seed (`int`): Random seed of sampling.

    Returns:
        `tuple[list[Judged], Dataset]`: One `Judged` per decoding, and the answers with `quality`. An answer without a
            score, such as an empty one, counts as 0 with a verifier, and otherwise as the lowest score of the others.
    """
    from persyn_hf.generation.generate import generate_parallel
    from persyn_hf.scoring.quality import persyn_quality
    from persyn_hf.tables import set_column

    asked = [
        Teacher(
            name=one.name,
            model=student.model,
            backend="local",
            dtype=student.dtype,
            device=student.device,
            sampling=Sampling.model_validate(one.model_dump(exclude={"name"})),
            batch_size=64,
        )
        for one in decodings
    ]
    answers = generate_parallel(prompts, asked, seed=seed, progress=False)
    found: list[float | None] = []
    for batch in answers.iter(500):
        found += persyn_quality(batch, **quality.model_dump(exclude_none=True))[columns.QUALITY]
    known = [value for value in found if value is not None]
    worst = 0.0 if quality.verifier is not None or not known else min(known)
    scores = [worst if value is None else float(value) for value in found]
    answers = set_column(answers, columns.QUALITY, scores, "float64")
    judged = []
    for one in decodings:
        rows = [row for row, name in enumerate(answers[columns.TEACHER]) if name == one.name]
        ids = tuple(answers[columns.PROMPT_ID][row] for row in rows)
        judged.append(Judged(one.name, ids, tuple(scores[row] for row in rows)))
    return judged, answers


def held_out_nll(student: Student, answers: Dataset) -> Judged:
    """Computes the negative log-likelihood of teachers' answers to the held-out prompts, in nats/token.

    Args:
        student (`Student`): Trained student.
        answers (`Dataset`): One row per prompt and teacher; the same for all compared students.

    Returns:
        `Judged`: Mean over the answers of each prompt. Prompts that no teacher answered are left out.

    Raises:
        StudentError: If no teacher answered any prompt.
    """
    from persyn_hf.scoring.learnability import persyn_learnability

    found: dict[str, list[float]] = {}
    for batch in answers.iter(500):
        scored = persyn_learnability(
            batch,
            student=student.model,
            revision=student.revision,
            dtype=student.dtype,
            device=student.device,
            token_budget=student.token_budget,
            too_long="truncate",
        )
        for identity, value in zip(batch[columns.PROMPT_ID], scored[columns.LEARNABILITY], strict=True):
            if value is not None:
                found.setdefault(identity, []).append(-float(value))
    if not found:
        raise StudentError("Expected teachers' answers to the held-out prompts, got none; the likelihood needs them.")
    return Judged(NLL, tuple(found), tuple(sum(each) / len(each) for each in found.values()), higher_is_better=False)


def run_benchmarks(student: Student, settings: LmEval, seed: int) -> list[Judged]:
    """Runs tasks of lm-evaluation-harness by name.

    Args:
        student (`Student`): Trained student.
        settings (`LmEval`): Tasks and their settings.
        seed (`int`): Random seed of few-shot examples and sampling.

    Returns:
        `list[Judged]`: One per task and metric, with a score per document if the metric is a mean over documents.

    Raises:
        ConfigError: If a task is unknown.
        MissingExtraError: If `lm-eval` is not installed.
    """
    require("run public benchmarks", "lm-eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=settings.include_path)
    unknown = [name for name in settings.tasks if not manager.match_tasks([name])]
    if unknown:
        raise ConfigError(
            f"`compare.lm_eval.tasks` must be tasks of lm-eval, got {', '.join(unknown)}; `lm-eval ls tasks` lists "
            "them."
        )
    files = ModelFiles(student.model, loading.identity(student.model, student.revision), "The student", StudentError)
    model = loading.load_model(files, "causal-lm", student.dtype, choose_device(student.device))
    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=loading.load_tokenizer(files), batch_size=settings.batch_size),
        tasks=list(settings.tasks),
        num_fewshot=settings.num_fewshot,
        limit=settings.limit,
        apply_chat_template=settings.apply_chat_template,
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return list(read_benchmarks(results))


def read_benchmarks(results: Mapping[str, Any]) -> Iterator[Judged]:
    """Reads the harness's results: every task's metrics, per document if the metric is their mean."""
    for task, metrics in results["results"].items():
        better = results.get("higher_is_better", {}).get(task, {})
        for key, value in metrics.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or not _is_number(value):
                continue
            samples = [one for one in results.get("samples", {}).get(task, ()) if one.get("filter") == filter_name]
            scores = [one.get(metric) for one in samples]
            name = f"{task}/{metric}" if filter_name == "none" else f"{task}/{metric}/{filter_name}"
            higher = better.get(metric) is not False
            whole = scores and all(_is_number(score) for score in scores)
            if whole and math.isclose(sum(map(float, scores)) / len(scores), float(value), abs_tol=1e-6):
                ids = tuple(str(one["doc_id"]) for one in samples)
                yield Judged(name, ids, tuple(map(float, scores)), higher)
            else:
                yield Judged(name, ("all",), (float(value),), higher)


def _is_number(value: object) -> bool:
    """Returns true for a finite number; the mean over no documents is NaN, which cannot be compared."""
    return hasattr(value, "__float__") and not isinstance(value, str) and math.isfinite(value)
