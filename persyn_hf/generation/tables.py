"""Prompts in, answers out: the checks before anything is spent, and the finished table, read from the ledger."""

from __future__ import annotations

import atexit
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, Value

from persyn_hf import columns
from persyn_hf.checkpoints import resolve_revision
from persyn_hf.config import Teacher
from persyn_hf.errors import DataError, RouterMismatchError
from persyn_hf.generation.client import Completion, Request
from persyn_hf.generation.ledger import Ledger, completion_key
from persyn_hf.generation.reasoning import presented
from persyn_hf.generation.scheduler import Job

#: Rows that are read, keyed and looked up at once.
CHUNK = 256
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
    columns.ERROR: Value("string"),
}


@dataclass(frozen=True)
class Asked:
    """A teacher with the identity of its model, as it stands in the ledger's keys."""

    teacher: Teacher
    model: str
    revision: str

    def messages(self, prompt: columns.Prompt) -> tuple[columns.Message, ...]:
        """What is sent for a prompt: its messages after the teacher's own system prompt."""
        messages = columns.canonical_messages(prompt)
        if self.teacher.system_prompt is not None:
            messages = [{"role": "system", "content": self.teacher.system_prompt}, *messages]
        return tuple(messages)

    def job(self, prompt: columns.Prompt, prompt_id: str, seed: int) -> Job:
        """The request for one prompt, under its key."""
        request = Request(prompt_id, self.messages(prompt), self.teacher.sampling, row_seed(seed, prompt_id))
        return Job(completion_key(self.model, self.revision, request), request)


def identify(teacher: Teacher) -> Asked:
    """Resolves what a teacher's model is: the digest of a folder, the commit of a repository, an endpoint's own words.

    Raises:
        ConfigError: If a local model cannot be found.
    """
    if teacher.backend == "endpoint":
        return Asked(teacher, teacher.model, teacher.revision or "")
    revision = resolve_revision(teacher.model, teacher.revision)
    return Asked(teacher, "" if revision.startswith("folder-") else teacher.model, revision)


def row_seed(seed: int, prompt_id: str) -> int:
    """The seed of one row: the first 31 bits of a SHA-256 of the run's seed and the prompt's identity; never 0,
    which TGI refuses.
    """
    digest = hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1 or 1


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


@dataclass
class Plan:
    """Who is to answer what.

    Args:
        table (`Dataset`): From [`prompt_table`].
        asked (`Sequence[Asked]`): The teachers.
        seed (`int`): The run's.
        routed (`bool`): Whether each prompt is answered by its `route` only.
        errors (`dict[str, str]`): Why a row has no answer, by key.
        down (`dict[str, str]`): Why the rows of a teacher that were never asked have none, by teacher.
    """

    table: Dataset
    asked: Sequence[Asked]
    seed: int
    routed: bool
    errors: dict[str, str] = field(default_factory=dict)
    down: dict[str, str] = field(default_factory=dict)

    def total(self, asked: Asked) -> int:
        """How many prompts a teacher answers."""
        if not self.routed:
            return len(self.table)
        return sum(route == asked.teacher.name for route in self.table[columns.ROUTE])

    def jobs(self, asked: Asked) -> Iterator[Job]:
        """The jobs of one teacher in the order of the table, made as they are drawn."""
        for batch in self._batches():
            yield from self._jobs_of(batch, asked)

    def messages(self, asked: Asked) -> Iterator[tuple[columns.Message, ...]]:
        """What one teacher is sent for each of its prompts."""
        for batch in self._batches():
            for position, prompt in enumerate(batch[columns.PROMPT]):
                if not self.routed or batch[columns.ROUTE][position] == asked.teacher.name:
                    yield asked.messages(prompt)

    def _batches(self) -> Iterator[dict[str, list[Any]]]:
        names = [columns.PROMPT_ID, columns.PROMPT, *([columns.ROUTE] if self.routed else [])]
        only = self.table.select_columns(names)
        for start in range(0, len(only), CHUNK):
            yield only[start : start + CHUNK]

    def _jobs_of(self, batch: dict[str, list[Any]], asked: Asked) -> Iterator[Job]:
        for position, prompt in enumerate(batch[columns.PROMPT]):
            if not self.routed or batch[columns.ROUTE][position] == asked.teacher.name:
                yield asked.job(prompt, batch[columns.PROMPT_ID][position], self.seed)

    def answers(self, ledger: Ledger) -> Iterator[dict[str, list[Any]]]:
        """The generated columns in the order of the finished table, with the row of `table` each belongs to."""
        start = 0
        for batch in self._batches():
            rows: list[tuple[int, Teacher, str]] = []
            for position, prompt in enumerate(batch[columns.PROMPT]):
                for asked in self.asked:
                    if not self.routed or batch[columns.ROUTE][position] == asked.teacher.name:
                        job = asked.job(prompt, batch[columns.PROMPT_ID][position], self.seed)
                        rows.append((start + position, asked.teacher, job.key))
            found = ledger.get_many({key for _, _, key in rows})
            made: dict[str, list[Any]] = {name: [] for name in ("row", *GENERATED_FEATURES)}
            for row, teacher, key in rows:
                self._append(made, row, teacher, key, found.get(key))
            start += len(batch[columns.PROMPT])
            yield made

    def _append(
        self, made: dict[str, list[Any]], row: int, teacher: Teacher, key: str, completion: Completion | None
    ) -> None:
        name = teacher.name
        text, reasoning = presented(completion, teacher.reasoning) if completion else (None, None)
        made["row"].append(row)
        made[columns.TEACHER].append(name)
        made[columns.COMPLETION].append(text)
        made[columns.REASONING].append(reasoning)
        made[columns.FINISH_REASON].append(completion and completion.finish_reason)
        made[columns.PROMPT_TOKENS].append(completion and completion.prompt_tokens)
        made[columns.COMPLETION_TOKENS].append(completion and completion.completion_tokens)
        made[columns.USAGE_SOURCE].append(completion and completion.usage_source)
        error = self.errors.get(key) or self.down.get(name) or "the run ended before this row was asked"
        made[columns.ERROR].append(None if completion else error)


def assemble(plan: Plan, ledger: Ledger) -> Dataset:
    """The finished table: the prompts' own columns and the generated ones, one row per (prompt, teacher).

    A table that is larger than `IN_MEMORY_BYTES` is written to a temporary file and mapped from there, so that
    memory does not grow with it; the file lives as long as the process.
    """
    features = Features({**plan.table.features, **GENERATED_FEATURES})
    parts: list[pa.Table] = []
    size = 0
    made = _parts(plan, ledger, features)
    for part in made:
        parts.append(part)
        size += part.nbytes
        if size > IN_MEMORY_BYTES:
            return Dataset.from_file(_spill(itertools.chain(_drained(parts), made), features))
    return Dataset(pa.concat_tables(parts) if parts else features.arrow_schema.empty_table())


def _parts(plan: Plan, ledger: Ledger, features: Features) -> Iterator[pa.Table]:
    schema = Features(GENERATED_FEATURES).arrow_schema
    prompts = plan.table.with_format("arrow")
    for start, made in zip(range(0, len(prompts), CHUNK), plan.answers(ledger), strict=True):
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
