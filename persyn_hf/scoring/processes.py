"""A student on several devices: a process for each, started by `spawn`, and answers dealt out to whoever is free.

Answers are cut into portions that do not depend on how many processes there are, and a portion is scored by itself. So
the scores do not depend on it either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from typing import Any

from persyn_hf.config.scoring import ScorerOptions, Student
from persyn_hf.errors import ConfigError, ScoringError
from persyn_hf.models.device import choose_device, gpu_count
from persyn_hf.models.files import ModelFiles
from persyn_hf.models.loading import context_of, identity, load_config, load_tokenizer
from persyn_hf.models.rendering import Rendered
from persyn_hf.models.workers import share_cores
from persyn_hf.scoring.reward import AnswerScore

#: Tokens of a portion: a few forward passes.
_PORTION = 65536
#: Arguments of `load_student`, without the device.
_Load = tuple[str, str, str, str | None]

_device: str | None = None


def chosen_devices(devices: str | Sequence[str] | None) -> list[str]:
    """The devices of a list, or all GPUs; none where nothing is asked, or where there is no GPU.

    Raises:
        ConfigError: If there is no such device.
    """
    if devices is None:
        return []
    if isinstance(devices, str):
        return [f"cuda:{index}" for index in range(gpu_count())]
    return [str(choose_device(device)) for device in devices]


@dataclass(frozen=True)
class SpreadStudent:
    """A student in several processes; see `load_spread_student`.

    Args:
        name, revision (`str`): Name as given, and the revision that it resolved to.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        context (`int`, *optional*): Tokens it can read at once; `None` if it has no limit.
        pool (`ProcessPoolExecutor`): A process for each device.
        load (`tuple`): Arguments with which a process loads the student.
    """

    name: str
    revision: str
    tokenizer: Any
    context: int | None
    pool: ProcessPoolExecutor
    load: _Load

    def score(
        self,
        answers: Sequence[Rendered],
        ranks: bool = False,
        token_budget: int | None = None,
        progress: Callable[[int], Any] | None = None,
    ) -> list[AnswerScore]:
        """Scores answers in portions; see `persyn_hf.scoring.engine.score_rendered`.

        Raises:
            ScoringError: As there.
        """
        found: dict[int, AnswerScore] = {}
        waiting: dict[Future[list[AnswerScore]], list[int]] = {}
        for rows in portions(answers):
            portion = [answers[row] for row in rows]
            waiting[self.pool.submit(_score_portion, self.load, portion, ranks, token_budget)] = rows
        try:
            for done in as_completed(waiting):
                found.update(zip(waiting[done], done.result(), strict=True))
                if progress is not None:
                    progress(sum(len(answers[row].ids) for row in waiting[done]))
        finally:
            for one in waiting:
                one.cancel()
        scores = [found[row] for row in range(len(answers))]
        if scores and all(score.error is not None for score in scores):
            from persyn_hf.scoring.engine import not_finite

            raise not_finite(self.name, "their type", len(scores))
        return scores


def load_spread_student(student: Student, devices: Sequence[str]) -> SpreadStudent:
    """Starts a process for each device. They stay until this process ends, or another student is asked for.

    Args:
        student (`Student`): Which one, and how it is run.
        devices (`Sequence[str]`): Two or more; one may stand twice.

    Raises:
        ConfigError: If there is no such model.
    """
    if len(devices) < 2:
        raise ConfigError(f"A student in several processes needs at least two devices, got {list(devices)}.")
    load = (student.model, identity(student.model, student.revision), student.dtype, student.attn_implementation)
    return _start(load, tuple(devices))


@lru_cache(maxsize=1)
def _start(load: _Load, devices: tuple[str, ...]) -> SpreadStudent:
    name, revision = load[:2]
    files = ModelFiles(name, revision, "The student", ScoringError)
    context = context_of(load_config(files))
    spawn = get_context("spawn")  # a forked process cannot use a GPU that its parent has used
    names = spawn.SimpleQueue()
    for device in devices:
        names.put(device)
    on_cpu = sum(device == "cpu" for device in devices)
    pool = ProcessPoolExecutor(len(devices), spawn, _take_device, (names, max(on_cpu, 1)))
    return SpreadStudent(name, revision, load_tokenizer(files), context, pool, load)


def _take_device(names: Any, on_cpu: int) -> None:
    """A process begins: it takes a device, and its share of the cores."""
    global _device
    _device = names.get()
    share_cores(on_cpu)


def _score_portion(
    load: _Load, answers: Sequence[Rendered], ranks: bool, token_budget: int | None
) -> list[AnswerScore]:
    from persyn_hf.scoring.engine import score_each
    from persyn_hf.scoring.growth import START
    from persyn_hf.scoring.student import load_student

    name, revision, dtype, attention = load
    model = load_student(name, revision, dtype, _device, attention)
    budget = token_budget or (START if model.streamed else ScorerOptions.cpu_tokens)  # one that grows depends on time
    return score_each(model, answers, ranks, budget)


def portions(answers: Sequence[Rendered]) -> Iterator[list[int]]:
    """Cuts answers into portions: answers of a prompt together, prompts of like length beside each other."""
    prompts: dict[tuple[int, ...], list[int]] = {}
    for row, answer in enumerate(answers):
        prompts.setdefault(answer.prompt_ids, []).append(row)
    longest = {prompt: max(len(answers[row].ids) for row in rows) for prompt, rows in prompts.items()}
    portion: list[int] = []
    used = 0
    for prompt in sorted(prompts, key=lambda prompt: -longest[prompt]):
        own = sum(len(answers[row].ids) for row in prompts[prompt])
        if portion and used + own > _PORTION:
            yield portion
            portion, used = [], 0
        portion += prompts[prompt]
        used += own
    if portion:
        yield portion
