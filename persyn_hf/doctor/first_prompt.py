"""The first prompt as it will be sent to every teacher."""

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

#: Longest excerpt of a message.
_EXCERPT = 400


@dataclass(frozen=True)
class FirstRequest:
    """What a teacher is sent for a prompt.

    Args:
        teacher (`str`): Its name.
        messages (`list[Message]`): All messages, its system prompt included.
        sampling (`str`): JSON of its sampling parameters.
        most (`float`): USD that the answer costs at most; 0 without a price.
    """

    teacher: str
    messages: list[columns.Message]
    sampling: str
    most: float

    def lines(self) -> Iterator[str]:
        """One line for the teacher and one for each message."""
        cost = f", at most {self.most:.2g} USD" if self.most else ""
        yield f"{tame(self.teacher)} ({self.sampling}{cost}):"
        for message in self.messages:
            content = message.get("content")
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
            rest = {key: value for key, value in message.items() if key not in ("role", "content")}
            more = f" {json.dumps(rest, ensure_ascii=False, default=str)}" if rest else ""
            yield f"  {tame(message['role'])}: {tame(text, _EXCERPT)}{tame(more, _EXCERPT)}"


def first_requests(config: RunConfig, prompts: Dataset) -> Iterator[FirstRequest]:
    """Makes what every teacher is sent for the first prompt of a table.

    Args:
        config (`RunConfig`): The run.
        prompts (`Dataset`): With `prompt_id` and `prompt`; at least one row.
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
