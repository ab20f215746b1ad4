"""Scoring of answers with a loaded student: packs or padded batches within a token budget, then sums per answer."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from persyn_hf.config import Student, default_of
from persyn_hf.errors import ConfigError, ScoringError
from persyn_hf.models.device import free_cache
from persyn_hf.models.rendering import Rendered
from persyn_hf.scoring.packing import build_pack, plan_packs, run_packed
from persyn_hf.scoring.reward import RANK_LIMIT, AnswerScore
from persyn_hf.scoring.student import StudentModel, token_scores

_NOT_FINITE = "the student gives log-probabilities that are not finite"
Progress = Callable[[int], object]


def score_rendered(
    student: StudentModel,
    answers: Sequence[Rendered],
    ranks: bool = False,
    token_budget: int = default_of(Student, "token_budget"),
    progress: Progress | None = None,
) -> list[AnswerScore]:
    """Scores rendered answers; a score does not depend on the other answers, their order or the budget.

    Args:
        student (`StudentModel`): From `load_student`.
        answers (`Sequence[Rendered]`): Answers with at least one completion token. Answers to one prompt share its
            computation, in any order.
        ranks (`bool`, defaults to `False`): Also sum the tokens' ranks.
        token_budget (`int`, defaults to 8192): Tokens of one forward pass, padding included. It is halved when memory
            runs out.
        progress (`Callable[[int], object]`, *optional*): Called after every pass with its number of tokens, the prompt
            counted once per answer.

    Returns:
        `list[AnswerScore]`: In order.

    Raises:
        ScoringError: If a single answer does not fit in memory, or no log-probability is finite. If only some are not
            finite, those answers have an `error`.
    """
    if token_budget < 1:
        raise ConfigError(f"`token_budget` must be at least 1, got {token_budget}.")
    found: dict[int, AnswerScore] = {}
    budget = token_budget
    while len(found) < len(answers):
        waiting = [row for row in range(len(answers)) if row not in found]
        try:
            for rows in _plan(student, answers, waiting, budget):
                found.update(zip(rows, _score_rows(student, answers, rows, ranks), strict=True))
                if progress is not None:
                    progress(sum(len(answers[row].ids) for row in rows))
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            budget = _smaller(student, answers, waiting, budget, error)
    for row in [row for row in found if found[row].error is not None] if len(found) > 1 else []:
        found[row] = _score_rows(student, answers, [row], ranks)[
            0
        ]  # alone: a neighbour in the batch may have caused it
    scores = [found[row] for row in range(len(answers))]
    if scores and all(score.error is not None for score in scores):
        raise ScoringError(
            f"The student `{student.name}` gives log-probabilities that are not finite for all {len(scores)} "
            f"answers. Its weights overflow in {student.model.dtype} or are corrupt: set another `dtype` or "
            "`revision`."
        )
    return scores


def _plan(student: StudentModel, answers: Sequence[Rendered], rows: Sequence[int], budget: int) -> Iterator[list[int]]:
    if student.packed:
        yield from plan_packs(answers, rows, _pack_size(student, answers, rows, budget))
        return
    batch: list[int] = []
    for row in sorted(rows, key=lambda row: -len(answers[row].ids)):  # the longest first: it needs the most memory
        if batch and (len(batch) + 1) * len(answers[batch[0]].ids) > budget:
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _pack_size(student: StudentModel, answers: Sequence[Rendered], rows: Sequence[int], budget: int) -> int:
    """The tokens of one pack: small on a CPU, to stay in its cache, but large enough that prompts seldom repeat."""
    if student.device.type != "cpu":
        return budget
    cached = 4096 // int(student.model.dtype.itemsize)
    return min(budget, max(cached, 8 * max(len(answers[row].prompt_ids) for row in rows)))


def _smaller(
    student: StudentModel, answers: Sequence[Rendered], rows: Sequence[int], budget: int, error: BaseException
) -> int:
    """Half the budget; an error if every pass already holds one answer, so that nothing would change."""
    if all(len(batch) == 1 for batch in _plan(student, answers, rows, budget)):
        raise ScoringError(f"One answer does not fit in the memory of {student.device}: {error}") from error
    gc.collect()
    free_cache(student.device)
    return max(budget // 2, 1)


def _is_out_of_memory(error: BaseException) -> bool:
    # On the CPU, torch raises a plain RuntimeError, which only its text tells apart.
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or ("memory" in text and "alloc" in text)


def _score_rows(
    student: StudentModel, answers: Sequence[Rendered], rows: Sequence[int], ranks: bool
) -> list[AnswerScore]:
    lengths = [len(answers[row].completion_ids) for row in rows]
    targets = torch.tensor([token for row in rows for token in answers[row].completion_ids], device=student.device)
    with torch.inference_mode():
        if student.head is None:
            logprobs, places = _from_logits(_padded(student, answers, rows), targets, ranks)
        else:
            hidden = (_packed if student.packed else _padded)(student, answers, rows)
            block = {} if student.device.type == "cpu" else {"rows": 4096, "tile": 8192}
            logprobs, places = token_scores(student.head, hidden, targets, ranks, **block)
        sums = [float(part.sum(dtype=torch.float64)) for part in torch.split(logprobs, lengths)]
        orders = [0] * len(rows)
        if places is not None:
            orders = [int(part.clamp(max=RANK_LIMIT).sum()) for part in torch.split(places, lengths)]
    return [
        AnswerScore(total, length, order if ranks else None, error=None if math.isfinite(total) else _NOT_FINITE)
        for total, length, order in zip(sums, lengths, orders, strict=True)
    ]


def _packed(student: StudentModel, answers: Sequence[Rendered], rows: Sequence[int]) -> Tensor:
    pack = build_pack(answers, rows)
    hidden = run_packed(student.body, pack, student.device)
    return hidden[torch.tensor(pack.sources, device=student.device)]


def _padded(student: StudentModel, answers: Sequence[Rendered], rows: Sequence[int]) -> Tensor:
    """Hidden states, or logits where only the whole model knows them, at the predicting positions."""
    longest = max(len(answers[row].ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        own = answers[row].ids
        ids[place, : len(own)] = torch.tensor(own)
        mask[place, : len(own)] = 1  # by length: a student's padding id may be a token of its answers
    inputs = {"input_ids": ids.to(student.device), "attention_mask": mask.to(student.device), "use_cache": False}
    states = student.model(**inputs).logits if student.head is None else student.body(**inputs)[0]
    spans = [answers[row].span for row in rows]
    return torch.cat([states[place, start - 1 : end - 1] for place, (start, end) in enumerate(spans)])


def _from_logits(logits: Tensor, targets: Tensor, ranks: bool, rows: int = 64) -> tuple[Tensor, Tensor | None]:
    scores, places = [], []
    for part, wanted in zip(torch.split(logits, rows), torch.split(targets, rows), strict=True):
        wide = part.to(torch.promote_types(part.dtype, torch.float32))
        scores.append(torch.log_softmax(wide, dim=-1).gather(1, wanted[:, None])[:, 0])
        places.append((wide > wide.gather(1, wanted[:, None])).sum(dim=1) + 1)
    return torch.cat(scores), torch.cat(places) if ranks else None
