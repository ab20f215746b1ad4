"""Preview of the first request to every teacher."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persyn_hf import columns
from persyn_hf.config import RunConfig
from persyn_hf.text import tame

if TYPE_CHECKING:
    from datasets import Dataset

#: Maximum length of an excerpt of a message.
_EXCERPT = 400


@dataclass(frozen=True)
class FirstRequest:
    """Request to a teacher for one prompt.

    Args:
        teacher (`str`): Name of the teacher.
        messages (`list[Message]`): All messages, including the teacher's system prompt.
        sampling (`str`): Sampling parameters, as JSON.
        most (`float`): Maximum cost of the answer, in USD; 0 without a price.
    """

    teacher: str
    messages: list[columns.Message]
    sampling: str
    most: float

    def lines(self) -> Iterator[str]:
        """Yields one line for the teacher and one for each message."""
        cost = f", at most {self.most:.2g} USD" if self.most else ""
        yield f"{tame(self.teacher)} ({self.sampling}{cost}):"
        for message in self.messages:
            content = message.get("content")
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
            rest = {key: value for key, value in message.items() if key not in ("role", "content")}
            more = f" {json.dumps(rest, ensure_ascii=False, default=str)}" if rest else ""
            yield f"  {tame(message['role'])}: {tame(text, _EXCERPT)}{tame(more, _EXCERPT)}"


def first_requests(config: RunConfig, prompts: Dataset) -> Iterator[FirstRequest]:
    """Builds every teacher's request for the first prompt of a table.

    Args:
        config (`RunConfig`): Configuration of the run.
        prompts (`Dataset`): Prompts with `prompt_id` and `prompt`; at least one row.
    """
    from persyn_hf.generation.budget import worst_case
    from persyn_hf.generation.jobs import Plan, resolved

    plan = Plan(prompts.select([0]), [resolved(teacher) for teacher in config.teachers], config.seed, False)
    for asked in plan.asked:
        teacher, request = asked.teacher, next(plan.jobs(asked)).request
        given = {key: value for key, value in request.sampling.values.items() if value not in (None, [], {})}
        sampling = json.dumps(given, ensure_ascii=False)
        most = worst_case(teacher, request) if teacher.has_price else 0.0
        yield FirstRequest(teacher.name, [*request.messages], sampling, most)
