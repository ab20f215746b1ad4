"""The interface of a teacher to the scheduler: one request in, one completion out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from persyn_hf.columns import UNNUMBERED, Message, RowNumbers
from persyn_hf.config import Sampling
from persyn_hf.ledger.completion import Completion


@dataclass(frozen=True)
class Request:
    """One complete request to one teacher; two equal requests have the same answer.

    Args:
        prompt_id (`str`): Id of the prompt.
        messages (`tuple[Message, ...]`): Messages to send, including the teacher's system prompt.
        sampling (`Sampling`): Sampling parameters of the teacher.
        seed (`int`, *optional*): Seed of the request; `None` if none is sent.
        numbers (`RowNumbers`, defaults to all 0): `turn`, `sample` and `attempt` of the row; not sent.
        own_body (`Mapping[str, object]`, defaults to none): Keys of the body that are specific to this row, such as
            `response_format`. They take precedence over the teacher's `extra_body`.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int | None
    numbers: RowNumbers = UNNUMBERED
    own_body: Mapping[str, object] = field(default_factory=dict)

    @property
    def more(self) -> dict[str, Any]:
        """Additional keys of the body: the teacher's `extra_body` and the row's own."""
        return {**self.sampling.extra_body, **self.own_body}


class TeacherClient(Protocol):
    """Client of a teacher: over HTTP, in process, or a test double.

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
