"""Columns of the table that all stages share, with one row per (prompt, teacher, turn, sample, attempt).

Column names are defined only here. A stage adds columns and removes none.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from numbers import Integral
from typing import Any

from persyn_hf.errors import DataError, DuplicatePromptError, MissingColumnError
from persyn_hf.messages import Message as Message
from persyn_hf.messages import Prompt as Prompt
from persyn_hf.messages import canonical_messages as canonical_messages
from persyn_hf.messages import canonical_tools as canonical_tools
from persyn_hf.messages import prompt_id as prompt_id
from persyn_hf.messages import prompt_text as prompt_text

PROMPT_ID = "prompt_id"
PROMPT = "prompt"
ANSWER = "answer"
#: Required format of a prompt's answer, as in a chat request (`json_schema` …): JSON, or an object.
RESPONSE_FORMAT = "response_format"
#: Functions that a prompt's answer may call: a list of definitions, as in TRL and chat templates.
TOOLS = "tools"

TEACHER = "teacher"
#: Number of a row's conversation turn, of its sample of the same answer, and of its attempt at that sample. Each is 0
#: if its column is absent or null.
TURN = "turn"
SAMPLE = "sample"
ATTEMPT = "attempt"
COMPLETION = "completion"
#: Function calls of each answer, null if there are none; present if a teacher called functions.
TOOL_CALLS = "tool_calls"
REASONING = "reasoning"
FINISH_REASON = "finish_reason"
PROMPT_TOKENS = "prompt_tokens"
COMPLETION_TOKENS = "completion_tokens"
#: Prompt tokens that the server read from its cache, and completion tokens spent on reasoning.
CACHED_TOKENS = "cached_tokens"
REASONING_TOKENS = "reasoning_tokens"
#: What an answer is paid by.
TOKENS = (PROMPT_TOKENS, COMPLETION_TOKENS, CACHED_TOKENS, REASONING_TOKENS)
#: Special tokens or an invented turn in the completion: one of `LEAKS`, null where there is none.
LEAK = "leak"
USAGE_SOURCE = "usage_source"
#: Request of a row: the teacher's sampling, the row's seed, and the system prompt before the prompt's messages.
TEMPERATURE = "temperature"
TOP_P = "top_p"
MAX_TOKENS = "max_tokens"
STOP = "stop"
SEED = "seed"
SYSTEM_PROMPT = "system_prompt"
#: Extra keys of every request, as JSON; present if a teacher sends any.
EXTRA_BODY = "extra_body"
#: Teacher that a row was routed to, if it was down and another one answered.
REROUTED_FROM = "rerouted_from"
ERROR = "error"

#: Acceptance of an attempt, if answers are requested until one is good enough, and, in a prompt's last row, the reason
#: that no teacher answered.
ACCEPTED = "accepted"
ACCEPT_ERROR = "accept_error"
#: Reason that `hygiene` drops an answer from the published set.
LEFT_OUT = "left_out"

QUALITY = "quality"
QUALITY_ERROR = "quality_error"
LEARNABILITY = "learnability"
REWARD = "reward"
STUDENT = "student"
STUDENT_REVISION = "student_revision"
LEARNABILITY_METRIC = "learnability_metric"
#: Present on request. `COMPLETION_TOKENS` is the teacher's count of an answer's tokens; the student's differs.
RSR = "rsr"
PERPLEXITY = "perplexity"
STUDENT_COMPLETION_TOKENS = "student_completion_tokens"
#: Reason that an answer has no learnability; present if there is such an answer.
LEARNABILITY_ERROR = "learnability_error"
#: True if only the start of the answer was scored; present with `too_long="truncate"`.
LEARNABILITY_TRUNCATED = "learnability_truncated"

ROUTE = "route"
ROUTE_SCORES = "route_scores"
#: All teachers of a prompt, the best first; present if a prompt has several. `ROUTE` is the first.
ROUTES = "routes"

#: All names above: the columns that stages add.
OWN = frozenset(value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str))

#: Columns that tell the rows of one prompt and teacher apart, and the key of every row of answers: see [`row_keys`].
ROW_NUMBERS = (TURN, SAMPLE, ATTEMPT)
ROW_KEY = (PROMPT_ID, TEACHER, *ROW_NUMBERS)

PROMPTS_STAGE = (PROMPT_ID, PROMPT)
GENERATED_STAGE = (TEACHER, COMPLETION, FINISH_REASON, PROMPT_TOKENS, COMPLETION_TOKENS, ERROR)
SCORED_STAGE = (QUALITY, LEARNABILITY, REWARD, STUDENT, STUDENT_REVISION, LEARNABILITY_METRIC)
ROUTED_STAGE = (ROUTE, ROUTE_SCORES)

#: Reasons that a completion ended; a server's other reasons are stored unchanged.
FINISH_REASONS = ("stop", "length", "content_filter", "tool_calls")
#: Sources of a row's token counts: the server, or the teacher's tokenizer if the server reports no usage.
USAGE_SOURCES = ("server", "tokenizer")

#: Kinds of text that a completion should not contain: see [`generation.special_tokens`].
LEAKS = ("end-token", "invented-turn", "special-token", "turn-words")

#: Values of `ROW_NUMBERS` and of `ROW_KEY` in one row, and the numbers of a row without any.
RowNumbers = tuple[int, int, int]
RowKey = tuple[str, str, int, int, int]
UNNUMBERED: RowNumbers = (0, 0, 0)


def is_cut(finish_reason: str | None) -> bool:
    """Tells whether an answer was truncated: true for every finish reason except `stop`, unknown ones included.

    Args:
        finish_reason (`str`, *optional*): Finish reason from the table. `None`, as in tables from elsewhere, counts as
            complete.

    Example:
        >>> [is_cut(reason) for reason in ("stop", None, "length", "content_filter", "no such reason")]
        [False, False, True, True, True]
    """
    return finish_reason is not None and finish_reason != "stop"


def is_own(name: str) -> bool:
    """Tells whether a column's name is reserved: one of a stage, or the quality by one of several sources.

    Example:
        >>> is_own("teacher"), is_own("quality_math"), is_own("source")
        (True, True, False)
    """
    return name in OWN or name.startswith(f"{QUALITY}_")


def require_columns(present: Iterable[str], needed: Iterable[str], stage: str) -> None:
    """Checks that a table has the columns that a stage reads.

    Args:
        present (`Iterable[str]`): Column names of the table.
        needed (`Iterable[str]`): Column names that the stage reads.
        stage (`str`): Name of the stage in errors ("score", "train_router" …).

    Raises:
        MissingColumnError: If a column is missing; the message lists the existing ones.
    """
    have = list(present)
    missing = [name for name in needed if name not in have]
    if missing:
        names = ", ".join(f"`{name}`" for name in missing)
        raise MissingColumnError(
            f"{stage} needs the column {names}, but the table has {', '.join(have) or 'no columns'}."
        )


def row_numbers(table: Any) -> list[RowNumbers]:
    """Reads `turn`, `sample` and `attempt` of every row; an absent column and a null count as 0.

    Args:
        table (`Dataset` or `Mapping[str, Sequence]`): A table, or a batch of its rows.

    Raises:
        DataError: If a number is not a whole number of at least 0.

    Example:
        >>> row_numbers({"prompt": ["Hi", "Hi"], "sample": [None, 1]})
        [(0, 0, 0), (0, 1, 0)]
    """
    names = list(getattr(table, "column_names", table))
    count = len(table) if hasattr(table, "column_names") else max((len(table[name]) for name in names), default=0)
    if not any(name in names for name in ROW_NUMBERS):
        return [UNNUMBERED] * count
    turns, samples, attempts = (
        [_row_number(name, value, row) for row, value in enumerate(table[name][:])] if name in names else [0] * count
        for name in ROW_NUMBERS
    )
    return list(zip(turns, samples, attempts, strict=True))


def _row_number(name: str, value: Any, row: int) -> int:
    if value is None:
        return 0
    is_number = isinstance(value, Integral | float) and not isinstance(value, bool)
    if is_number and 0 <= value < 2**63 and value == int(value):
        return int(value)
    raise DataError(
        f"Row {row}: `{name}` must be a whole number of at least 0, got {value!r:.80}. It is part of a row's key; "
        "rename the column if it means something else."
    )


def row_keys(table: Any) -> list[RowKey]:
    """Reads the key of every row of answers, in the order of `ROW_KEY`; two rows with one key are the same answer.

    Args:
        table (`Dataset` or `Mapping[str, Sequence]`): A table with `prompt_id` and `teacher`, or a batch of its rows;
            see [`row_numbers`].

    Example:
        >>> row_keys({"prompt_id": ["p", "p"], "teacher": ["a", "a"], "sample": [0, 1]})
        [('p', 'a', 0, 0, 0), ('p', 'a', 0, 1, 0)]
    """
    pairs = zip(table[PROMPT_ID][:], table[TEACHER][:], strict=True)
    return [(*pair, *numbers) for pair, numbers in zip(pairs, row_numbers(table), strict=True)]


def numbered(numbers: RowNumbers) -> str:
    """The numbers of a row for messages, after its prompt and teacher: `", sample 2"`; empty if all are 0."""
    return "".join(f", {name} {value}" for name, value in zip(ROW_NUMBERS, numbers, strict=True) if value)


def require_unique(keys: Iterable[Hashable], stage: str, *, also: str = "") -> None:
    """Checks that no prompt occurs twice.

    Args:
        keys (`Iterable[Hashable]`): Keys that must be unique.
        stage (`str`): Name of the stage in errors.
        also (`str`, *optional*): Another fix, appended to the message.

    Raises:
        DuplicatePromptError: If a key repeats; the message has the number of repeated prompts and the first of them.
    """
    seen: set[Hashable] = set()
    repeated = []
    for key in keys:
        if key in seen:
            repeated.append(key)
        seen.add(key)
    if repeated:
        raise DuplicatePromptError(
            f"{stage} needs every prompt once; {len(repeated)} rows repeat an earlier prompt, first {repeated[0]}. "
            f"Drop the duplicates before this stage{also}."
        )
