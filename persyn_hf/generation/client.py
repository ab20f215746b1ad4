"""What every teacher looks like to the scheduler: one request in, one completion out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from persyn_hf.columns import UNNUMBERED, Message, RowNumbers
from persyn_hf.config import Sampling
from persyn_hf.ledger.completion import Completion


@dataclass(frozen=True)
class Request:
    """One question to one teacher, complete: two equal requests have the same answer.

    Args:
        prompt_id (`str`): Identity of the prompt.
        messages (`tuple[Message, ...]`): What is sent, the teacher's system prompt included.
        sampling (`Sampling`): How the teacher samples.
        seed (`int`): The row's seed, in `[0, 2**31)`.
        numbers (`RowNumbers`, defaults to all 0): `turn`, `sample` and `attempt` of the row; not sent.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    numbers: RowNumbers = UNNUMBERED


class TeacherClient(Protocol):
    """A way to ask a teacher: over HTTP, in process, or a double in a test.

    A client belongs to one event loop.
    """

    async def complete(self, request: Request) -> Completion:
        """Answers one request.

        Raises:
            RetryableError: The same request may succeed later.
            RowError: This request can never succeed.
            TeacherDownError: No request to this teacher can succeed.
        """
        ...

    async def aclose(self) -> None:
        """Releases connections."""
        ...
