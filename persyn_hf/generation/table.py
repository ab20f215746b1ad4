"""Output of generation: the finished table, built from the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Json, List, Value

from persyn_hf import columns
from persyn_hf.config import Teacher
from persyn_hf.errors import ConfigError, RouterMismatchError
from persyn_hf.generation.answer import cleaned, presented
from persyn_hf.generation.attempts import Job
from persyn_hf.generation.calls import opened
from persyn_hf.generation.jobs import CHUNK, Asked, Plan
from persyn_hf.generation.special_tokens import Stripped
from persyn_hf.generation.spill import Spill
from persyn_hf.ledger.completion import Completion
from persyn_hf.ledger.ledger import Ledger
from persyn_hf.messages import read_calls

#: Maximum size of a finished table in memory, in bytes.
IN_MEMORY_BYTES = 8 * 2**20
#: Rows added per step during a run (two milliseconds), and rows per piece of the table.
_AHEAD, _BATCH = 64, 1000
#: Error of a row that was never sent.
_NEVER_ASKED = "the run ended before this row was sent"
#: Error of an answer in an older ledger.
_NOTHING_LEFT = "the answer contains only special tokens"


class FinishedTable:
    """The finished table: the prompts' columns and the generated ones, one row per prompt row and teacher, in order.

    A table larger than `IN_MEMORY_BYTES` is written to a temporary file and memory-mapped, so memory does not grow
    with it; the file exists as long as the process.

    Args:
        plan (`Plan`): Assignment of rows to teachers.
        ledger (`Ledger`): Ledger with the answers.
        drop_truncated (`bool`, defaults to `False`): Whether to omit truncated answers.
    """

    def __init__(self, plan: Plan, ledger: Ledger, drop_truncated: bool = False) -> None:
        self._plan, self._ledger, self._drop_truncated = plan, ledger, drop_truncated
        self._added = generated_features(
            [asked.teacher for asked in plan.asked], columns.TOOLS in plan.table.column_names
        )
        self._features = Features({**plan.table.features, **self._added})
        self._schema = self._features.arrow_schema
        self._ahead = _AHEAD if plan.routed else max(1, _AHEAD // len(plan.asked))
        self._generated = Features(self._added).arrow_schema
        self._prompts = plan.table.with_format("arrow")
        self._parts: list[pa.Table] = []
        self._loose: list[pa.Table] = []
        self._spill = Spill(self._schema, _BATCH)
        self._size = 0
        self._next = 0
        self._awaited: str | None = None

    def advance(self) -> bool:
        """Adds the next rows during a run; returns `False` if one may still be answered, or no rows are left."""
        if self._next >= len(self._prompts):
            return False
        # The awaited row is looked up alone, which is faster than a lookup of all teachers' rows.
        if self._awaited is not None and not self._settled(self._awaited, self._ledger.get_many([self._awaited])):
            return False
        part = self._part(self._ahead, only_settled=True)
        if part is not None:
            self._add(part)
        return part is not None

    def finish(self) -> Dataset:
        """Adds the remaining rows and returns the table; rows without an answer get an error."""
        for part in self._rest():
            self._add(part)
        self._bind()
        if self._size > IN_MEMORY_BYTES:
            return Dataset.from_file(self._spill.close())
        return Dataset(pa.concat_tables(self._parts) if self._parts else self._schema.empty_table())

    def _settled(self, key: str, found: Mapping[str, Completion]) -> bool:
        """Returns whether a row has an answer, or has failed permanently."""
        return key in found or key in self._plan.errors

    def _add(self, part: pa.Table) -> None:
        self._loose.append(part)
        self._size += part.nbytes
        if sum(map(len, self._loose)) >= _BATCH:
            self._bind()

    def _bind(self) -> None:
        """Combines the loose parts, whose many small buffers double their size, into one piece.

        If the pieces are too large in total, they are written to the file.
        """
        if self._loose:
            self._parts.append(pa.concat_tables(self._loose).combine_chunks())
            self._loose.clear()
        if self._size > IN_MEMORY_BYTES:
            self._spill.write(self._parts)
            self._parts.clear()

    def _rest(self) -> Iterator[pa.Table]:
        while self._next < len(self._prompts):
            part = self._part(CHUNK, only_settled=False)
            assert part is not None
            yield part

    def _part(self, count: int, only_settled: bool) -> pa.Table | None:
        """Builds the rows of the next prompts; `None` if they must be settled and are not."""
        start = self._next
        made = self._columns(start, start + count, only_settled)
        if made is None:
            return None
        self._next += count
        rows = [row - start for row in made.pop("row")]
        part = self._prompts[start : start + count].take(pa.array(rows, type=pa.int64()))
        for column, values in zip(self._generated, made.values(), strict=True):
            part = part.append_column(column, pa.array(values, type=column.type))
        return part.cast(self._schema)

    def _columns(self, start: int, stop: int, only_settled: bool) -> dict[str, list[Any]] | None:
        """Builds the generated columns of some rows, with the row of the prompts' table that each belongs to."""
        plan, pairs = self._plan, self._plan.pairs(start, stop)
        found = self._ledger.get_many({job.key for _, _, job, _ in pairs})
        if only_settled:
            # The last unsettled row, because rows are answered roughly in order.
            unsettled = (job.key for _, _, job, _ in reversed(pairs) if not self._settled(job.key, found))
            self._awaited = next(unsettled, None)
            if self._awaited is not None:
                return None
        made: dict[str, list[Any]] = {name: [] for name in ("row", *self._added)}
        for row, asked, job, instead_of in pairs:
            completion = found.get(job.key)
            if self._drop_truncated and completion is not None and columns.is_cut(completion.finish_reason):
                continue
            answer = _answer(asked, job, completion)
            values = (row, *answer, *_asked_how(asked, job), instead_of, None)
            for column, value in zip(made.values(), values, strict=False):
                column.append(value)
            if columns.EXTRA_BODY in made:
                made[columns.EXTRA_BODY].append(_extra_body(asked.teacher))
            if columns.TOOL_CALLS in made:
                made[columns.TOOL_CALLS].append(None if completion is None else opened(completion)[1])
            if completion is None:
                made[columns.ERROR][-1] = plan.errors.get(job.key) or plan.left.get(asked.name) or _NEVER_ASKED
            elif answer[1] is None:
                made[columns.ERROR][-1] = _NOTHING_LEFT
        return made


class FinishedColumns(FinishedTable):
    """`prompt_id` and the generated columns as Python values, for `map`, which builds its own table.

    Args:
        plan, ledger: As in [`FinishedTable`].
    """

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        super().__init__(plan, ledger)
        self._values: dict[str, list[object]] = {name: [] for name in (columns.PROMPT_ID, *self._added)}

    def values(self) -> dict[str, list[object]]:
        """Adds the remaining rows and returns a list for each column."""
        for part in self._rest():
            self._add(part)
        return self._values

    def _add(self, part: pa.Table) -> None:
        for name, values in self._values.items():
            cells = part[name].to_pylist()
            values += map(read_calls, cells) if name == columns.TOOL_CALLS else cells


def _answer(asked: Asked, job: Job, completion: Completion | None) -> tuple[object, ...]:
    if completion is None:
        return (asked.name, *[None] * 9)
    completion, calls = opened(completion)
    clean = cleaned(completion, job.request, asked.teacher) if calls is None else Stripped(completion.text)
    text, thoughts = presented(replace(completion, text=clean.text), asked.teacher.reasoning)
    return (
        asked.name,
        text if clean.text.strip() else None,
        thoughts,
        completion.finish_reason,
        clean.leak,
        completion.prompt_tokens,
        completion.completion_tokens,
        completion.cached_tokens,
        completion.reasoning_tokens,
        completion.usage_source,
    )


def _asked_how(asked: Asked, job: Job) -> tuple[object, ...]:
    sampling = asked.teacher.sampling
    return (
        sampling.temperature,
        sampling.top_p,
        sampling.max_tokens,
        list(sampling.stop),
        job.request.seed,
        asked.teacher.system_prompt,
    )


def _extra_body(teacher: Teacher) -> str | None:
    extra = teacher.sampling.extra_body
    return json.dumps(extra, ensure_ascii=False, sort_keys=True) if extra else None


#: Columns that generation adds, with their types, so that a column of nulls keeps its type.
GENERATED_FEATURES = {
    columns.TEACHER: Value("string"),
    columns.COMPLETION: Value("string"),
    columns.REASONING: Value("string"),
    columns.FINISH_REASON: Value("string"),
    columns.LEAK: Value("string"),
    columns.PROMPT_TOKENS: Value("int64"),
    columns.COMPLETION_TOKENS: Value("int64"),
    columns.CACHED_TOKENS: Value("int64"),
    columns.REASONING_TOKENS: Value("int64"),
    columns.USAGE_SOURCE: Value("string"),
    columns.TEMPERATURE: Value("float64"),
    columns.TOP_P: Value("float64"),
    columns.MAX_TOKENS: Value("int64"),
    columns.STOP: List(Value("string")),
    columns.SEED: Value("int64"),
    columns.SYSTEM_PROMPT: Value("string"),
    columns.REROUTED_FROM: Value("string"),
    columns.ERROR: Value("string"),
}


def generated_features(teachers: Iterable[Teacher], tools: bool = False) -> dict[str, Value | List | Json]:
    """Returns the columns that generation by these teachers adds.

    `extra_body` is included if a teacher sends additional keys, and `tool_calls` if prompts offer tools.
    """
    more = any(teacher.sampling.extra_body for teacher in teachers)
    added = {columns.EXTRA_BODY: Value("string")} if more else {}
    return {**GENERATED_FEATURES, **added, **({columns.TOOL_CALLS: Json()} if tools else {})}


def require_known_routes(table: Dataset, teachers: Sequence[Teacher]) -> None:
    """Checks that every prompt is routed to one of the teachers.

    Raises:
        MissingColumnError: If there is no `route`.
        RouterMismatchError: If a route names another teacher.
    """
    columns.require_columns(table.column_names, [columns.ROUTE], "generate_routed")
    names = [teacher.name for teacher in teachers]
    unknown = sorted({str(route) for route in table.unique(columns.ROUTE)} - set(names))
    if unknown:
        raise RouterMismatchError(
            f"`route` names {', '.join(unknown)}, but the teachers are {', '.join(names)}. "
            "Use a router that was trained for these teachers, or configure the teachers that it names."
        )


def require_ranking(
    table: Dataset, teachers: Sequence[Teacher], ranking: Sequence[str] | None
) -> Sequence[str] | None:
    """Returns the teachers' names in the order of `route_scores`, checked against the table.

    Raises:
        ConfigError: If a teacher has `on_teacher_down: reroute` and the table has no scores, or not one per name.
    """
    wanted = [teacher.name for teacher in teachers if teacher.on_teacher_down == "reroute"]
    if not wanted:
        return None
    names = list(ranking) if ranking is not None else [teacher.name for teacher in teachers]
    if columns.ROUTE_SCORES not in table.column_names:
        raise ConfigError(
            f"teacher `{wanted[0]}`: `on_teacher_down: reroute` needs the column `{columns.ROUTE_SCORES}`, which "
            "routing adds; use a router, or choose `wait` or `error`."
        )
    lengths = {len(scores) for scores in table[columns.ROUTE_SCORES][:CHUNK]} - {len(names)}
    if lengths:
        raise ConfigError(
            f"`{columns.ROUTE_SCORES}` has {lengths.pop()} scores per row for the {len(names)} teachers "
            f"{', '.join(names)}; pass the router's `teachers` as `score_names`."
        )
    return names
