"""Scoring on a device that computes while the host goes on: nothing is waited for until all answers are through.

The sums of the answers stay on the device, in float64, and come to the host once. Inputs of a batch are laid out while
the batch before it is computed, at most two batches ahead.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from persyn_hf.errors import ScoringError
from persyn_hf.models.device import Timeline, free_cache, is_out_of_memory
from persyn_hf.models.rendering import Rendered
from persyn_hf.scoring.batches import Batch, pack_tensors, plan_batches, run_shared, run_sorted, sorted_arrays, upload
from persyn_hf.scoring.growth import Growth
from persyn_hf.scoring.reward import RANK_LIMIT

if TYPE_CHECKING:
    from persyn_hf.scoring.student import OutputLayer, StudentModel

#: Batches that the host may be ahead of the device.
_AHEAD = 2
#: Bytes of the logits of one tile, whatever the size of the vocabulary.
_TILE_BYTES = 2**29


def stream_sums(
    student: StudentModel,
    answers: Sequence[Rendered],
    ranks: bool,
    growth: Growth,
    progress: Callable[[int], Any] | None = None,
) -> tuple[list[float], list[int]]:
    """The sums of the log-probabilities of answers, and of their tokens' ranks.

    Args:
        student (`StudentModel`): With a head.
        answers (`Sequence[Rendered]`): With at least one completion token.
        ranks (`bool`): Also the ranks, each at most `RANK_LIMIT`; else the sums are 0.
        growth (`Growth`): The size of batches.
        progress (`Callable[[int], Any]`, *optional*): Called with the tokens (prompt included, unshared) of every
            batch.

    Returns:
        `tuple[list[float], list[int]]`: In the answers' order.

    Raises:
        ScoringError: If a single answer does not fit in memory.
    """
    stream = _Stream(student, answers, ranks, growth, progress)
    while stream.waiting:
        try:
            stream.run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            stream.shrink(error)
    return stream.sums.tolist(), stream.orders.tolist()


class _Stream:
    """One call of [`stream_sums`]."""

    def __init__(
        self,
        student: StudentModel,
        answers: Sequence[Rendered],
        ranks: bool,
        growth: Growth,
        progress: Callable[[int], Any] | None,
    ) -> None:
        self.student, self.answers, self.ranks = student, answers, ranks
        self.growth, self.progress = growth, progress
        self.waiting = dict.fromkeys(range(len(answers)))
        wide = torch.float32 if student.device.type == "mps" else torch.float64  # Apple's GPUs know no float64
        self.sums = torch.zeros(len(answers), dtype=wide, device=student.device)
        self.orders = torch.zeros(len(answers), dtype=torch.long, device=student.device)
        self._last: Batch | None = None

    def run(self) -> None:
        """Goes through what waits."""
        line = Timeline(self.student.device)
        plan = plan_batches(self.answers, list(self.waiting), lambda: self.growth.size, self.student.sharing)
        given: deque[tuple[Any, Any, Batch]] = deque()
        before = line.mark()
        for batch in plan:
            self._last = batch
            self._give(batch)
            for row in batch.rows:
                del self.waiting[row]
            if self.progress is not None:
                self.progress(sum(len(self.answers[row].ids) for row in batch.rows))
            after = line.mark()
            given.append((before, after, batch))
            before = after
            if len(given) > _AHEAD:
                first, second, done = given.popleft()
                seconds = line.seconds(first, second)
                self.growth.record(done.size, done.tokens, seconds, lambda: line.has_room(2.0))

    def shrink(self, error: BaseException) -> None:
        """Halves the batches after one did not fit.

        Raises:
            ScoringError: If it held a single answer.
        """
        batch = self._last
        if batch is None or len(batch.rows) == 1:
            raise ScoringError(f"One answer does not fit in the memory of {self.student.device}: {error}") from error
        self.sums[list(batch.rows)] = 0  # what it had added before it failed
        self.orders[list(batch.rows)] = 0
        self.growth.halve(batch.tokens)
        gc.collect()
        free_cache(self.student.device)

    def _give(self, batch: Batch) -> None:
        """Gives a batch to the device."""
        student, head = self.student, self.student.head
        assert head is not None
        with torch.inference_mode():
            if batch.shared:
                assert student.sharing is not None
                pack = pack_tensors(self.answers, batch.rows, student.sharing)
                inputs = upload(pack.arrays, student.device)
                hidden = run_shared(student.body, pack, inputs)
            else:
                inputs = upload(sorted_arrays(self.answers, batch.rows), student.device)
                hidden = run_sorted(student.body, inputs, student.masked)
            rows = tile_rows(head)
            parts = (torch.split(inputs[name], rows) for name in ("sources", "targets", "owners"))
            for sources, targets, owners in zip(*parts, strict=True):
                scores, places = tile_scores(head, hidden[sources], targets, self.ranks)
                self.sums.index_add_(0, owners, scores.to(self.sums.dtype))
                if places is not None:
                    self.orders.index_add_(0, owners, places.clamp_(max=RANK_LIMIT))


def tile_rows(head: OutputLayer, tile_bytes: int = _TILE_BYTES) -> int:
    """Positions whose logits over the whole vocabulary are held at once: any vocabulary takes the same memory."""
    rows = tile_bytes // (len(head.weight) * (head.weight.element_size() + 8))
    return max(rows - rows % 64 if rows >= 64 else rows, 1)


def tile_scores(head: OutputLayer, hidden: Tensor, targets: Tensor, ranks: bool) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and ranks of one tile: some positions, the whole vocabulary, one pass over its logits.

    Args:
        head (`OutputLayer`): The output layer.
        hidden (`Tensor`): `(tokens, hidden)`.
        targets (`Tensor`): `(tokens,)`.
        ranks (`bool`): Also the ranks, as `token_scores` gives them.

    Returns:
        `tuple[Tensor, Tensor | None]`: Each `(tokens,)`.
    """
    logits = head.raw(hidden)
    own = head.at(hidden, targets)
    rounded = logits.gather(1, targets[:, None])[:, 0]
    above = None
    if ranks:  # the target itself never counts, however its logit was rounded
        above = (logits > own[:, None]).sum(dim=1) - (rounded > own).long() + 1
    # Summed in float32 by one kernel: fewer passes over memory than a maximum, a difference, an exponential and a sum.
    logprobs = torch.log_softmax(logits, dim=-1, dtype=own.dtype).gather(1, targets[:, None])[:, 0]
    return own - (rounded.to(own.dtype) - logprobs), above
