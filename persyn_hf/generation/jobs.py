"""Teachers with their model identities, and the jobs of each, built as they are drawn."""

from __future__ import annotations

import asyncio
import hashlib
import json
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from datasets import Dataset

from persyn_hf import columns
from persyn_hf.config import Teacher
from persyn_hf.generation.attempts import Job
from persyn_hf.generation.budget import cost_of
from persyn_hf.generation.client import Request
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.ledger import Origin
from persyn_hf.models.identity import named_identity, teacher_identity
from persyn_hf.prompts.sending import canonical_format

#: Rows of the finished table per batch of reading, keying and lookup.
CHUNK = 256
#: Jobs per batch; small, because requests wait while a batch is built.
AHEAD = 32


@dataclass(frozen=True)
class Asked:
    """A teacher with the identity of its model, as used in the ledger's keys."""

    teacher: Teacher
    model: str
    revision: str

    @property
    def name(self) -> str:
        """The teacher's name."""
        return self.teacher.name

    @cached_property
    def _renderer(self) -> str:
        """The tokenizer that renders the prompts here, where that is not the model's own."""
        return "" if self.teacher.renderer is None else named_identity(self.teacher.renderer)

    @cached_property
    def _sampling(self) -> str:
        return json.dumps(self.teacher.sampling.values, ensure_ascii=False, sort_keys=True)

    def messages(self, prompt: columns.Prompt) -> tuple[columns.Message, ...]:
        """Builds the messages to send for a prompt, with the teacher's system prompt first."""
        messages = columns.canonical_messages(prompt)
        if self.teacher.system_prompt is not None:
            messages = [{"role": "system", "content": self.teacher.system_prompt}, *messages]
        return tuple(messages)

    def job(
        self,
        prompt: columns.Prompt,
        prompt_id: str,
        seed: int,
        numbers: columns.RowNumbers = columns.UNNUMBERED,
        own_body: Mapping[str, object] | None = None,
    ) -> Job:
        """Builds the request for one row, with its key."""
        sampling = self.teacher.sampling
        own = row_seed(seed, prompt_id, numbers) if sampling.seed == "per-row" else sampling.seed
        request = Request(prompt_id, self.messages(prompt), sampling, own, numbers, own_body or {})
        return Job(completion_key(self.model, self.revision, request, self._renderer), request)

    def origin(self, request: Request, completion: Completion) -> Origin:
        """Builds the origin of an answer for the ledger."""
        cost = cost_of(self.teacher, request, completion)
        return Origin(request.prompt_id, self.teacher.model, self.revision, request.seed, self._sampling, cost)


def resolved(teacher: Teacher) -> Asked:
    """Resolves the identity of a teacher's model.

    Raises:
        ConfigError: If a local model cannot be found.
    """
    identity = teacher_identity(teacher)
    return Asked(teacher, identity.model, identity.revision)


def row_seed(seed: int, prompt_id: str, numbers: columns.RowNumbers = columns.UNNUMBERED) -> int:
    """Derives the seed of one row: the first 31 bits of a SHA-256 of the run's seed, the prompt's id and, unless all
    are 0, the row's numbers; never 0, which TGI refuses.

    Args:
        seed (`int`): Seed of the run.
        prompt_id (`str`): Id of the prompt.
        numbers (`RowNumbers`, defaults to all 0): `turn`, `sample` and `attempt` of the row.
    """
    parts = (seed, prompt_id) if numbers == columns.UNNUMBERED else (seed, prompt_id, *numbers)
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1 or 1


@dataclass
class Plan:
    """Assignment of rows to teachers, and the errors of a run.

    Args:
        table (`Dataset`): Prompts from `incoming.prompt_table`.
        asked (`Sequence[Asked]`): Teachers.
        seed (`int`): Seed of the run.
        routed (`bool`): Whether to answer each prompt by its `route` only.
        ranking (`Sequence[str]`, *optional*): Names of the teachers in the order of `route_scores`.
        errors (`dict[str, str]`): Error of each row without an answer, by key.
        left (`dict[str, str]`): Error of the rows that were never sent, by teacher.
        rerouted (`dict[int, str]`): Teacher that answers instead of the routed one, by row of `table`.
    """

    table: Dataset
    asked: Sequence[Asked]
    seed: int
    routed: bool
    ranking: Sequence[str] | None = None
    errors: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    rerouted: dict[int, str] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, Asked]:
        """The teachers by name."""
        return {asked.name: asked for asked in self.asked}

    @cached_property
    def _rows(self) -> dict[str, Sequence[int]]:
        if not self.routed:
            return {asked.name: range(len(self.table)) for asked in self.asked}
        rows: dict[str, array[int]] = {asked.name: array("q") for asked in self.asked}
        batches = self.table.select_columns([columns.ROUTE]).iter(CHUNK)  # a single column would be read row by row
        for row, name in enumerate(name for batch in batches for name in batch[columns.ROUTE]):
            rows[name].append(row)
        return dict(rows)

    def rows(self, asked: Asked) -> Sequence[int]:
        """Returns the rows of the table that a teacher answers."""
        return self._rows[asked.name]

    def jobs(self, asked: Asked, rows: Sequence[int] | None = None) -> Iterator[Job]:
        """Yields the jobs of one teacher, for all of its rows in order or for some rows, built as they are drawn."""
        for batch in self._batches(self.rows(asked) if rows is None else rows):
            for prompt, prompt_id, numbers, own_body in _identified(batch):
                yield asked.job(prompt, prompt_id, self.seed, numbers, own_body)

    def messages(self, asked: Asked) -> Iterator[tuple[tuple[columns.Message, ...], Mapping[str, Any]]]:
        """The content of each of a teacher's requests: messages, and the prompt's own keys (`tools` …)."""
        for batch in self._batches(self.rows(asked)):
            for prompt, _, _, own_body in _identified(batch):
                yield asked.messages(prompt), own_body

    @cached_property
    def _paired(self) -> Dataset:
        return self.table.select_columns([*self._identity, *([columns.ROUTE] if self.routed else [])])

    def pairs(self, start: int, stop: int) -> list[tuple[int, Asked, Job, str | None]]:
        """Returns some rows of the finished table: row of `table`, teacher, job, and the teacher it replaces."""
        batch = self._paired[start:stop]
        made = []
        for offset, (prompt, prompt_id, numbers, own_body) in enumerate(_identified(batch)):
            row = start + offset
            route = batch[columns.ROUTE][offset] if self.routed else None
            for asked, instead_of in self._answering(row, route):
                made.append((row, asked, asked.job(prompt, prompt_id, self.seed, numbers, own_body), instead_of))
        return made

    def _answering(self, row: int, route: str | None) -> list[tuple[Asked, str | None]]:
        if route is None:
            return [(asked, None) for asked in self.asked]
        taken = self.rerouted.get(row)
        return [(self.by_name[taken or route], route if taken else None)]

    def next_best(self, rows: Sequence[int], gone: Collection[str]) -> Iterator[tuple[int, str | None]]:
        """Yields each row with its best-scored teacher that is not gone, or `None`."""
        known = [(place, name) for place, name in enumerate(self.ranking or ()) if name in self.by_name]
        scored = columns.ROUTE_SCORES in self.table.column_names
        only = self.table.select_columns([columns.ROUTE_SCORES]) if scored else None
        for start in range(0, len(rows), CHUNK):
            part = list(rows[start : start + CHUNK])
            scores = [None] * len(part) if only is None else only[part][columns.ROUTE_SCORES]
            for row, values in zip(part, scores, strict=True):
                alive = [(values[place], -place, name) for place, name in known if name not in gone] if values else []
                yield row, max(alive)[2] if alive else None

    @cached_property
    def _identity(self) -> list[str]:
        """Columns that determine a row's request."""
        asked_for = (*columns.ROW_NUMBERS, columns.RESPONSE_FORMAT, columns.TOOLS)
        present = [name for name in asked_for if name in self.table.column_names]
        return [columns.PROMPT_ID, columns.PROMPT, *present]

    def _batches(self, rows: Sequence[int]) -> Iterator[dict[str, list[Any]]]:
        only = self.table.select_columns(self._identity)
        for start in range(0, len(rows), AHEAD):
            part = rows[start : start + AHEAD]
            yield only[part.start : part.stop] if isinstance(part, range) else only[list(part)]


def _identified(
    batch: dict[str, list[Any]],
) -> Iterator[tuple[columns.Prompt, str, columns.RowNumbers, dict[str, object]]]:
    """Yields prompt, prompt id, numbers and row-specific keys of the request for every row of a batch."""
    prompts, ids = batch[columns.PROMPT], batch[columns.PROMPT_ID]
    nothing = [None] * len(prompts)
    formats = map(canonical_format, batch.get(columns.RESPONSE_FORMAT, nothing))
    tools = map(columns.canonical_tools, batch.get(columns.TOOLS, nothing))
    named = [
        {columns.RESPONSE_FORMAT: form, columns.TOOLS: offered} for form, offered in zip(formats, tools, strict=True)
    ]
    own: list[dict[str, object]] = [{key: value for key, value in keys.items() if value is not None} for keys in named]
    return zip(prompts, ids, columns.row_numbers(batch), own, strict=True)


#: Version of [`completion_key`], increased when the same request gets another key.
_KEY_VERSION = 1


def completion_key(model: str, revision: str, request: Request, renderer: str = "") -> str:
    """The identity of an answer: SHA-256 over everything that it depends on, and nothing else.

    The teacher's name and the endpoint's address are not included, so a renamed teacher or a moved server keeps its
    answers.

    Args:
        model (`str`): The model's name; empty for a local folder, whose revision is a digest.
        revision (`str`): Resolved commit or digest of the model, or the configured revision of an endpoint's model.
        request (`Request`): Messages, sampling parameters, seed, the row's numbers where any is set, and the row's
            own keys of the body where it has any.
        renderer (`str`, defaults to none): The tokenizer whose template rendered the messages before they were sent,
            where one is configured for that.

    Returns:
        `str`: 64 hex digits.
    """
    head, sampling, seed = _key_head(model, revision, renderer), request.sampling.canonical, _canonical(request.seed)
    numbers = "" if request.numbers == columns.UNNUMBERED else f",{_canonical(request.numbers)}"
    own = f",{_canonical(request.own_body)}" if request.own_body else ""
    text = f"[{head},{_canonical(request.messages)},{sampling},{seed}{numbers}{own}]"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_canonical = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str).encode


@lru_cache(maxsize=256)
def _key_head(model: str, revision: str, renderer: str = "") -> str:
    return _canonical([_KEY_VERSION, model, revision, *([{"tokenizer": renderer}] if renderer else [])])[1:-1]


class Exchange:
    """Hands rows of teachers that are down over to the next best ones.

    A teacher that has finished its own rows waits here until it receives rows or none can come any more.

    Args:
        names (`Iterable[str]`): Names of the teachers, all of them active.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.gone: set[str] = set()
        self._rows: dict[str, list[int]] = {name: [] for name in names}
        self._at_work = len(self._rows)
        self._changed = asyncio.Condition()

    async def hand(self, rows: Sequence[tuple[int, str]]) -> None:
        """Hands over rows, each with the name of its new teacher."""
        async with self._changed:
            for row, name in rows:
                self._rows[name].append(row)
            self._changed.notify_all()

    async def take(self, name: str) -> list[int]:
        """Waits for the rows handed to a teacher, which counts as idle meanwhile; empty once no more can come."""
        async with self._changed:
            self._at_work -= 1
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._rows[name] or not self._under_way)
            rows = self._drawn(name)
            self._at_work += bool(rows)
            return rows

    async def leave(self, name: str) -> list[int]:
        """Removes a teacher; returns the rows that it was handed and has not taken."""
        async with self._changed:
            self.gone.add(name)
            self._at_work -= 1
            self._changed.notify_all()
            return self._drawn(name)

    @property
    def _under_way(self) -> bool:
        """`True` if rows may still be handed over."""
        return self._at_work > 0 or any(self._rows.values())

    def _drawn(self, name: str) -> list[int]:
        rows, self._rows[name] = self._rows[name], []
        return rows
