"""Scoring of answers with a loaded student: packs or padded batches within a token budget, then sums per answer."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from persyn_hf.config.scoring import ScorerOptions
from persyn_hf.errors import ConfigError, ScoringError
from persyn_hf.models.device import exact_float32, free_cache, is_out_of_memory
from persyn_hf.models.rendering import Rendered
from persyn_hf.scoring.growth import Growth
from persyn_hf.scoring.packing import build_pack, plan_packs, run_packed
from persyn_hf.scoring.reward import RANK_LIMIT, AnswerScore
from persyn_hf.scoring.streaming import stream_sums
from persyn_hf.scoring.student import StudentModel, token_scores

_NOT_FINITE = "the student gives log-probabilities that are not finite"
Progress = Callable[[int], object]


def score_rendered(
    student: StudentModel,
    answers: Sequence[Rendered],
    ranks: bool = False,
    token_budget: int | None = None,
    progress: Progress | None = None,
) -> list[AnswerScore]:
    """Scores rendered answers; a score does not depend on the other answers, their order or the budget.

    Args:
        student (`StudentModel`): From `load_student`.
        answers (`Sequence[Rendered]`): Answers with at least one completion token. Answers to one prompt share its
            computation, in any order.
        ranks (`bool`, defaults to `False`): Also sum the tokens' ranks.
        token_budget (`int`, *optional*): Tokens of one forward pass, padding included. Default: 8,192 on a CPU;
            elsewhere what `persyn_hf.scoring.growth` finds. Out of memory halves it.
        progress (`Callable[[int], Any]`, *optional*): Called with the tokens (prompt included, unshared) of every
            pass.

    Returns:
        `list[AnswerScore]`: In order.

    Raises:
        ScoringError: If a single answer does not fit in memory, or no log-probability is finite. If only some are not
            finite, those answers have an `error`.
    """
    scores = score_each(student, answers, ranks, token_budget, progress)
    if scores and all(score.error is not None for score in scores):
        raise not_finite(student.name, str(student.model.dtype), len(scores))
    return scores


def not_finite(name: str, dtype: str, count: int) -> ScoringError:
    """The error of a student that gives no finite number."""
    return ScoringError(
        f"The student `{name}` gives log-probabilities that are not finite, for all of {count} answers. Its weights "
        f"overflow in {dtype}, or are damaged: give another `dtype` or `revision`."
    )


def score_each(
    student: StudentModel,
    answers: Sequence[Rendered],
    ranks: bool = False,
    token_budget: int | None = None,
    progress: Progress | None = None,
) -> list[AnswerScore]:
    """Scores a part of many answers; see [`score_rendered`]. An `error` is not one of all answers."""
    if token_budget is not None and token_budget < 1:
        raise ConfigError(f"`token_budget` must be at least 1, got {token_budget}.")
    with exact_float32():
        scores = (_streamed if student.streamed else _awaited)(student, answers, ranks, token_budget, progress)
        for row in [row for row, score in enumerate(scores) if score.error is not None] if len(scores) > 1 else []:
            again = [answers[row]]  # its neighbours' numbers may be what is not finite
            scores[row] = (
                _streamed(student, again, ranks, None, None)[0]
                if student.streamed
                else (_score_rows(student, again, [0], ranks)[0])
            )
    return scores


def _streamed(
    student: StudentModel,
    answers: Sequence[Rendered],
    ranks: bool,
    token_budget: int | None,
    progress: Progress | None,
) -> list[AnswerScore]:
    """See `persyn_hf.scoring.streaming`."""
    growth = student.growth if token_budget is None else Growth(token_budget, settled=True)
    sums, orders = stream_sums(student, answers, ranks, growth, progress)
    lengths = [len(answer.completion_ids) for answer in answers]
    return [_answer_score(*row, ranks) for row in zip(sums, lengths, orders, strict=True)]


def _awaited(
    student: StudentModel,
    answers: Sequence[Rendered],
    ranks: bool,
    token_budget: int | None,
    progress: Progress | None,
) -> list[AnswerScore]:
    """One forward pass after the other, each waited for."""
    found: dict[int, AnswerScore] = {}
    budget = token_budget or ScorerOptions.cpu_tokens
    while len(found) < len(answers):
        waiting = [row for row in range(len(answers)) if row not in found]
        try:
            for rows in _plan(student, answers, waiting, budget):
                found.update(zip(rows, _score_rows(student, answers, rows, ranks), strict=True))
                if progress is not None:
                    progress(sum(len(answers[row].ids) for row in rows))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            budget = _smaller(student, answers, waiting, budget, error)
    return [found[row] for row in range(len(answers))]


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
    return [_answer_score(*row, ranks) for row in zip(sums, lengths, orders, strict=True)]


def _answer_score(total: float, length: int, order: int, ranks: bool) -> AnswerScore:
    error = None if math.isfinite(total) else _NOT_FINITE
    return AnswerScore(total, length, order if ranks else None, error=error)


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
