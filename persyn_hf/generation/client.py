"""What every teacher looks like to the scheduler: one request in, one completion out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

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
        seed (`int`, *optional*): The request's seed; `None` where none is sent.
        numbers (`RowNumbers`, defaults to all 0): `turn`, `sample` and `attempt` of the row; not sent.
        own_body (`Mapping[str, Any]`, defaults to none): Keys of the request's body that this row has of its own, such
            as `response_format`. They go before the teacher's `extra_body`.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int | None
    numbers: RowNumbers = UNNUMBERED
    own_body: Mapping[str, Any] = field(default_factory=dict)

    @property
    def more(self) -> dict[str, Any]:
        """The keys of the body beside those that every request has: the teacher's, and the row's own."""
        return {**self.sampling.extra_body, **self.own_body}


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
