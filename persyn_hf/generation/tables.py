"""Prompts in, answers out: the checks before anything is spent, and the finished table, read from the ledger."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from persyn_hf import columns
from persyn_hf.config import Teacher
from persyn_hf.errors import ConfigError, DataError, RouterMismatchError
from persyn_hf.generation.client import Completion
from persyn_hf.generation.ledger import Ledger
from persyn_hf.generation.plan import CHUNK, Asked, Plan
from persyn_hf.generation.reasoning import presented
from persyn_hf.generation.scheduler import Job

#: The largest finished table that is held in memory.
IN_MEMORY_BYTES = 32 * 2**20
#: The columns that generation adds, with their types, so that a column of nulls keeps its type.
GENERATED_FEATURES = {
    columns.TEACHER: Value("string"),
    columns.COMPLETION: Value("string"),
    columns.REASONING: Value("string"),
    columns.FINISH_REASON: Value("string"),
    columns.PROMPT_TOKENS: Value("int64"),
    columns.COMPLETION_TOKENS: Value("int64"),
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
#: Of a row that nothing else is known about.
_NEVER_ASKED = "the run ended before this row was asked"


def prompt_table(prompts: Dataset | Iterable[Mapping[str, Any] | str], stage: str) -> Dataset:
    """Checks prompts and gives them as a table with `prompt_id`.

    Raises:
        DataError: If there is no `prompt`, one is empty or not a prompt (the row is named), one stands twice, or the
            table already has columns that generation would add.
    """
    if not isinstance(prompts, Dataset):
        rows = [{columns.PROMPT: row} if isinstance(row, str) else dict(row) for row in prompts]
        prompts = Dataset.from_list(rows) if rows else Dataset.from_dict({columns.PROMPT: []})
    table = prompts.with_format(None)
    columns.require_columns(table.column_names, [columns.PROMPT], stage)
    taken = [name for name in GENERATED_FEATURES if name in table.column_names]
    if taken:
        raise DataError(
            f"{stage} adds the column {', '.join(f'`{name}`' for name in taken)}, which the table already has; "
            "rename or remove it first."
        )
    ids = []
    only = table.select_columns([columns.PROMPT])
    for start in range(0, len(table), CHUNK):
        for offset, prompt in enumerate(only[start : start + CHUNK][columns.PROMPT]):
            try:
                ids.append(columns.prompt_id(prompt))
            except DataError as error:
                raise DataError(f"Row {start + offset}: {error}") from error
    columns.require_unique(ids, stage)
    if columns.PROMPT_ID not in table.column_names:
        table = table.add_column(columns.PROMPT_ID, ids, feature=Value("string"))
        names = [name for name in table.column_names if name != columns.PROMPT_ID]
        table = table.select_columns([columns.PROMPT_ID, *names])
    elif table[columns.PROMPT_ID][:] != ids:
        first = next(i for i, (a, b) in enumerate(zip(table[columns.PROMPT_ID], ids, strict=True)) if a != b)
        raise DataError(f"Row {first}: `prompt_id` is not that of its prompt ({ids[first]}); drop the column.")
    return table


def require_known_routes(table: Dataset, teachers: Sequence[Teacher]) -> None:
    """Checks that every prompt is routed to one of the teachers.

    Raises:
        MissingColumnError: If there is no `route`.
        RouterMismatchError: If one names another teacher.
    """
    columns.require_columns(table.column_names, [columns.ROUTE], "generate_routed")
    names = [teacher.name for teacher in teachers]
    unknown = sorted({str(route) for route in table.unique(columns.ROUTE)} - set(names))
    if unknown:
        raise RouterMismatchError(
            f"`route` names {', '.join(unknown)}, but the teachers are {', '.join(names)}. "
            "Route with a router that was trained for these teachers, or configure those it names."
        )


def require_ranking(
    table: Dataset, teachers: Sequence[Teacher], ranking: Sequence[str] | None
) -> Sequence[str] | None:
    """The names that `route_scores` stand for, checked against the table.

    Raises:
        ConfigError: If a teacher is to be rerouted and the table has no scores, or they are not of these names.
    """
    wanted = [teacher.name for teacher in teachers if teacher.on_teacher_down == "reroute"]
    if not wanted:
        return None
    names = list(ranking) if ranking is not None else [teacher.name for teacher in teachers]
    if columns.ROUTE_SCORES not in table.column_names:
        raise ConfigError(
            f"teacher `{wanted[0]}`: `on_teacher_down: reroute` needs the column `{columns.ROUTE_SCORES}`, which "
            "routing adds; route with a router, or choose `wait` or `error`."
        )
    lengths = {len(scores) for scores in table[columns.ROUTE_SCORES][:CHUNK]} - {len(names)}
    if lengths:
        raise ConfigError(
            f"`{columns.ROUTE_SCORES}` has {lengths.pop()} scores a row for the {len(names)} teachers "
            f"{', '.join(names)}; give the router's `teachers` as `score_names`."
        )
    return names


def answered(plan: Plan, ledger: Ledger, drop_truncated: bool) -> Iterator[dict[str, list[Any]]]:
    """The generated columns in the order of the finished table, with the row of `table` that each belongs to."""
    for pairs in plan.pairs():
        found = ledger.get_many({job.key for _, _, job, _ in pairs})
        made: dict[str, list[Any]] = {name: [] for name in ("row", *GENERATED_FEATURES)}
        for row, asked, job, instead_of in pairs:
            completion = found.get(job.key)
            if drop_truncated and completion is not None and completion.finish_reason == "length":
                continue
            values = (row, *_answer(asked, completion), *_asked_how(asked, job), instead_of, None)
            for column, value in zip(made.values(), values, strict=True):
                column.append(value)
            if completion is None:
                made[columns.ERROR][-1] = plan.errors.get(job.key) or plan.left.get(asked.name) or _NEVER_ASKED
        yield made


def _answer(asked: Asked, completion: Completion | None) -> tuple[Any, ...]:
    if completion is None:
        return (asked.name, *[None] * 6)
    text, thoughts = presented(completion, asked.teacher.reasoning)
    return (
        asked.name, text, thoughts, completion.finish_reason, completion.prompt_tokens, completion.completion_tokens,
        completion.usage_source,
    )  # fmt: skip


def _asked_how(asked: Asked, job: Job) -> tuple[Any, ...]:
    sampling = asked.teacher.sampling
    return (
        sampling.temperature, sampling.top_p, sampling.max_tokens, list(sampling.stop), job.request.seed,
        asked.teacher.system_prompt,
    )  # fmt: skip


def assemble(plan: Plan, ledger: Ledger, drop_truncated: bool = False) -> Dataset:
    """The finished table: the prompts' own columns and the generated ones, one row per (prompt, teacher).

    A table that is larger than `IN_MEMORY_BYTES` is written to a temporary file and mapped from there, so that
    memory does not grow with it; the file lives as long as the process.
    """
    features = Features({**plan.table.features, **GENERATED_FEATURES})
    parts: list[pa.Table] = []
    size = 0
    made = _parts(plan, ledger, features, drop_truncated)
    for part in made:
        parts.append(part)
        size += part.nbytes
        if size > IN_MEMORY_BYTES:
            return Dataset.from_file(_spill(itertools.chain(_drained(parts), made), features))
    return Dataset(pa.concat_tables(parts) if parts else features.arrow_schema.empty_table())


def _parts(plan: Plan, ledger: Ledger, features: Features, drop_truncated: bool) -> Iterator[pa.Table]:
    schema = Features(GENERATED_FEATURES).arrow_schema
    prompts = plan.table.with_format("arrow")
    for start, made in zip(range(0, len(prompts), CHUNK), answered(plan, ledger, drop_truncated), strict=True):
        rows = [row - start for row in made.pop("row")]
        part = prompts[start : start + CHUNK].take(pa.array(rows, type=pa.int64()))
        for column, values in zip(schema, made.values(), strict=True):
            part = part.append_column(column, pa.array(values, type=column.type))
        yield part.cast(features.arrow_schema)


def _drained(parts: list[pa.Table]) -> Iterator[pa.Table]:
    while parts:
        yield parts.pop(0)


def _spill(parts: Iterable[pa.Table], features: Features) -> str:
    folder = tempfile.mkdtemp(prefix="persyn-hf-")
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    path = os.path.join(folder, "generated.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, features.arrow_schema) as writer:
        for part in parts:
            writer.write_table(part)
    return path
