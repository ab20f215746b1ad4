"""What every teacher looks like to the scheduler: one request in, one completion out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from persyn_hf.columns import UNNUMBERED, Message, RowNumbers
from persyn_hf.config import Sampling


@dataclass(frozen=True)
class Request:
    """One question to one teacher, complete: two equal requests have the same answer.

    Args:
        prompt_id (`str`): Identity of the prompt.
        messages (`tuple[Message, ...]`): What is sent, the teacher's system prompt included.
        sampling (`Sampling`): How the teacher samples.
        seed (`int`): The row's seed, in `[0, 2**31)`.
        numbers (`RowNumbers`, defaults to all 0): `turn`, `sample` and `attempt` of the row; not sent.
        tools (`tuple[Message, ...]`, defaults to none): The functions that the answer may call.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    numbers: RowNumbers = UNNUMBERED
    tools: tuple[Message, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One answer.

    Args:
        text (`str`): The answer, without reasoning; never empty.
        finish_reason (`str`): One of `columns.FINISH_REASONS`.
        prompt_tokens, completion_tokens (`int`, *optional*): Usage; `None` where nobody could count.
        reasoning (`str`, *optional*): What the model thought before it answered.
        usage_source (`str`, *optional*): One of `columns.USAGE_SOURCES`: who counted the tokens.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    reasoning: str | None = None
    usage_source: str | None = None


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
