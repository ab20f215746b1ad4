"""The table that all stages share: one row per (prompt, teacher, turn, sample, attempt).

Column names live here and nowhere else. A stage adds columns and removes none.
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
#: The form that a prompt's answer must have (`json_schema` …), as a chat request names it: JSON, or an object.
RESPONSE_FORMAT = "response_format"
#: The functions that a prompt's answer may call: a list of definitions, as TRL and chat templates take them.
TOOLS = "tools"

TEACHER = "teacher"
#: Which turn of a conversation a row asks for, which draw of the same answer it is, and which try of that draw.
#: Each is 0 where its column is absent or null.
TURN = "turn"
SAMPLE = "sample"
ATTEMPT = "attempt"
COMPLETION = "completion"
#: There where a teacher called functions: the calls of each answer, null where it called none.
TOOL_CALLS = "tool_calls"
REASONING = "reasoning"
FINISH_REASON = "finish_reason"
PROMPT_TOKENS = "prompt_tokens"
COMPLETION_TOKENS = "completion_tokens"
#: Those of the prompt that the server read from its cache, and those of the completion that went into reasoning.
CACHED_TOKENS = "cached_tokens"
REASONING_TOKENS = "reasoning_tokens"
#: What an answer is paid by.
TOKENS = (PROMPT_TOKENS, COMPLETION_TOKENS, CACHED_TOKENS, REASONING_TOKENS)
#: Special tokens or an invented turn in the completion: one of `LEAKS`, null where there is none.
LEAK = "leak"
USAGE_SOURCE = "usage_source"
#: How a row was asked: the teacher's sampling, the row's seed, and the system prompt before the prompt's messages.
TEMPERATURE = "temperature"
TOP_P = "top_p"
MAX_TOKENS = "max_tokens"
STOP = "stop"
SEED = "seed"
SYSTEM_PROMPT = "system_prompt"
#: There where a teacher sends more keys with every request: JSON of them.
EXTRA_BODY = "extra_body"
#: The teacher that a row was routed to, where another one answered since that one was down.
REROUTED_FROM = "rerouted_from"
ERROR = "error"

#: Of an attempt, where answers are asked for until one is good enough: whether it is, and, in a prompt's last row, why
#: nobody answered.
ACCEPTED = "accepted"
ACCEPT_ERROR = "accept_error"
#: Why `hygiene` leaves an answer out of the published set.
LEFT_OUT = "left_out"

QUALITY = "quality"
QUALITY_ERROR = "quality_error"
LEARNABILITY = "learnability"
REWARD = "reward"
STUDENT = "student"
STUDENT_REVISION = "student_revision"
LEARNABILITY_METRIC = "learnability_metric"
#: On request. The teacher's own count of an answer's tokens is `COMPLETION_TOKENS`; the student reads other tokens.
RSR = "rsr"
PERPLEXITY = "perplexity"
STUDENT_COMPLETION_TOKENS = "student_completion_tokens"
#: There where an answer has no learnability: why.
LEARNABILITY_ERROR = "learnability_error"
#: There with `too_long="truncate"`: whether only the start of the answer was scored.
LEARNABILITY_TRUNCATED = "learnability_truncated"

ROUTE = "route"
ROUTE_SCORES = "route_scores"
#: There where a prompt has several teachers: all of them, best first; `ROUTE` is the first.
ROUTES = "routes"

#: All of the names above: what a stage adds stands nowhere else.
OWN = frozenset(value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str))

#: What tells the rows of one prompt and teacher apart, and the key of every row of answers: see [`row_keys`].
ROW_NUMBERS = (TURN, SAMPLE, ATTEMPT)
ROW_KEY = (PROMPT_ID, TEACHER, *ROW_NUMBERS)

PROMPTS_STAGE = (PROMPT_ID, PROMPT)
GENERATED_STAGE = (TEACHER, COMPLETION, FINISH_REASON, PROMPT_TOKENS, COMPLETION_TOKENS, ERROR)
SCORED_STAGE = (QUALITY, LEARNABILITY, REWARD, STUDENT, STUDENT_REVISION, LEARNABILITY_METRIC)
ROUTED_STAGE = (ROUTE, ROUTE_SCORES)

#: Why a completion ended, by the names that every client uses; a reason that none of them knows stays as it was given.
FINISH_REASONS = ("stop", "length", "content_filter", "tool_calls")
#: Who counted a row's tokens: the server, or the teacher's tokenizer where the server reports no usage.
USAGE_SOURCES = ("server", "tokenizer")

#: What was found in a completion that its model should not have shown: see [`generation.special_tokens`].
LEAKS = ("end-token", "invented-turn", "special-token", "turn-words")

#: The values of `ROW_NUMBERS` and of `ROW_KEY` in one row, and the numbers of a row that has none.
RowNumbers = tuple[int, int, int]
RowKey = tuple[str, str, int, int, int]
UNNUMBERED: RowNumbers = (0, 0, 0)


def is_cut(finish_reason: str | None) -> bool:
    """Tells whether an answer ended before its end: every reason but `stop`, an unknown one included.

    Args:
        finish_reason (`str`, *optional*): As the table has it; `None`, as of a table that was not generated here, is
            no cut.

    Example:
        >>> [is_cut(reason) for reason in ("stop", None, "length", "content_filter", "no such reason")]
        [False, False, True, True, True]
    """
    return finish_reason is not None and finish_reason != "stop"


def is_own(name: str) -> bool:
    """Whether a column's name is one of ours: a stage's, or the quality by one of several sources.

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
        stage (`str`): What needs them, for the message ("score", "train_router" …).

    Raises:
        MissingColumnError: If one is absent; the message lists those that are there.
    """
    have = list(present)
    missing = [name for name in needed if name not in have]
    if missing:
        names = ", ".join(f"`{name}`" for name in missing)
        raise MissingColumnError(f"{stage} needs the column {names}; the table has {', '.join(have) or 'no columns'}.")


def row_numbers(table: Any) -> list[RowNumbers]:
    """Gives `turn`, `sample` and `attempt` of every row; an absent column and a null count as 0.

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
    """Gives the key of every row of answers, in the order of `ROW_KEY`: two rows of one key are one answer.

    Args:
        table (`Dataset` or `Mapping[str, Sequence]`): With `prompt_id` and `teacher`; see [`row_numbers`].

    Example:
        >>> row_keys({"prompt_id": ["p", "p"], "teacher": ["a", "a"], "sample": [0, 1]})
        [('p', 'a', 0, 0, 0), ('p', 'a', 0, 1, 0)]
    """
    pairs = zip(table[PROMPT_ID][:], table[TEACHER][:], strict=True)
    return [(*pair, *numbers) for pair, numbers in zip(pairs, row_numbers(table), strict=True)]


def numbered(numbers: RowNumbers) -> str:
    """How a message names a row beside its prompt and teacher: `", sample 2"`; nothing for a row without numbers."""
    return "".join(f", {name} {value}" for name, value in zip(ROW_NUMBERS, numbers, strict=True) if value)


def require_unique(keys: Iterable[Hashable], stage: str, *, also: str = "") -> None:
    """Checks that no prompt stands twice.

    Args:
        keys (`Iterable[Hashable]`): What must differ between prompts; the first repeated one is named.
        stage (`str`): What needs them, for the message.
        also (`str`, *optional*): Another way out, for the message.

    Raises:
        DuplicatePromptError: With the number of repeated prompts and the first of them.
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
