"""Conversion of routed answers to the table that a student is trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns
from persyn_hf.errors import DataError
from persyn_hf.messages import answer_message, canonical_messages
from persyn_hf.tables import pieces, require_table

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

CARRIED = (
    columns.PROMPT_ID,
    columns.TEACHER,
    *columns.ROW_NUMBERS,
    columns.ROUTE_SCORES,
    columns.FINISH_REASON,
    columns.PROMPT_TOKENS,
    columns.COMPLETION_TOKENS,
    columns.ANSWER,
    columns.TOOLS,
    columns.RESPONSE_FORMAT,
)
_BATCH = 10_000
_KEPT, _FAILED, _EMPTY, _TRUNCATED = range(4)


@dataclass(frozen=True)
class Kept:
    """Counts of the answers that became training rows and of the others.

    Args:
        rows (`int`): Training rows.
        failed (`int`): Answers with `error` set, which are never trained on.
        truncated (`int`): Answers cut by `max_tokens`, by a filter or for an unknown reason, which are left out.
        empty (`int`): Answers without text, which are left out.
    """

    rows: int
    failed: int
    truncated: int
    empty: int

    @property
    def share(self) -> float:
        """Training rows per requested answer, 0 to 1."""
        asked = self.rows + self.failed + self.truncated + self.empty
        return self.rows / asked if asked else 0.0


def personalize(answers: Dataset, keep_truncated: bool = False) -> Dataset:
    """Makes the personalised set, in TRL's conversational prompt–completion format.

    Args:
        answers (`Dataset`): Routed answers from [`generate_routed`].
        keep_truncated (`bool`, defaults to `False`): Keep truncated completions (`finish_reason` is not `stop`); TRL
            would teach the student to end its turn there.

    Returns:
        `Dataset`: `prompt` and `completion` as message lists; `prompt_id`, `teacher`, `turn`, `sample`, `attempt`,
        `route_scores`, `finish_reason` and the token counts if the answers have them; and the prompts' own columns
        (`answer`, `tools`, ids, sources). Messages are unchanged; an answer that calls tools is a message with
        `tool_calls`. Failed and empty answers are left out.

    Raises:
        MissingColumnError: If the table lacks a column of answers.
        DataError: If nothing is left to train on, or a prompt is empty.
    """
    require_table(answers, "personalize", "answers")
    columns.require_columns(
        answers.column_names,
        (columns.PROMPT, columns.COMPLETION, columns.TEACHER, columns.FINISH_REASON),
        "personalize",
    )
    keep = kept_rows(answers, keep_truncated)
    if not len(keep):
        raise DataError(
            f"No answer is left to train on: all {len(answers)} failed, were empty or were truncated. "
            "Check the columns `error` and `finish_reason`; increase `max_tokens`, or set `keep_truncated`."
        )
    kept = answers.select(keep) if len(keep) < len(answers) else answers
    carried = [name for name in CARRIED if name in kept.column_names]
    carried += [name for name in kept.column_names if not columns.is_own(name)]
    features = _features(kept, carried)
    made = kept.with_format("arrow").map(
        _conversations,
        batched=True,
        batch_size=_BATCH,
        remove_columns=[name for name in kept.column_names if name not in features],
        features=features,
        fn_kwargs={"order": list(features)},
        desc="personalize",
    )
    return made.with_format(None)


def kept_rows(answers: Dataset, keep_truncated: bool = False) -> NDArray[Any]:
    """The rows that [`personalize`] keeps, in order."""
    return np.flatnonzero(_fates(answers, keep_truncated) == _KEPT)


def count_kept(answers: Dataset, keep_truncated: bool = False) -> Kept:
    """Counts the answers that [`personalize`] keeps, and those that it leaves out by reason."""
    fates = np.bincount(_fates(answers, keep_truncated), minlength=4).tolist()
    return Kept(rows=fates[_KEPT], failed=fates[_FAILED], truncated=fates[_TRUNCATED], empty=fates[_EMPTY])


def _fates(answers: Dataset, keep_truncated: bool) -> NDArray[Any]:
    """Classifies every row as kept, failed, empty or truncated, `(rows,)`; reads in pieces to limit memory."""
    import pyarrow.compute as pc

    fates = [np.empty(0, dtype=np.int8)]
    for table in _batches(answers, (columns.COMPLETION, columns.FINISH_REASON, columns.ERROR)):
        completion = table[columns.COMPLETION]
        failed = pc.is_null(completion)
        if columns.ERROR in table.column_names:
            failed = pc.or_(failed, pc.is_valid(table[columns.ERROR]))
        empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(completion), ""), False)
        cut = pc.fill_null(pc.not_equal(table[columns.FINISH_REASON].cast("string"), "stop"), False)
        fate = np.full(len(table), _KEPT, dtype=np.int8)
        if not keep_truncated:
            fate[_mask(cut)] = _TRUNCATED
        fate[_mask(empty)] = _EMPTY
        fate[_mask(failed)] = _FAILED
        fates.append(fate)
    return np.concatenate(fates)


def _batches(answers: Dataset, names: tuple[str, ...]) -> Iterator[pa.Table]:
    yield from pieces(answers.select_columns([name for name in names if name in answers.column_names]))


def _mask(flags: Any) -> NDArray[Any]:
    return np.asarray(flags.to_numpy(), dtype=bool)


def _conversations(batch: pa.Table, order: list[str]) -> pa.Table:
    """Turns prompts and completions into message lists, with Arrow operations on whole columns."""
    import pyarrow as pa

    made = {name: batch[name] for name in batch.column_names}
    prompt = batch[columns.PROMPT].combine_chunks()
    if pa.types.is_list(prompt.type) or pa.types.is_large_list(prompt.type):
        _require_messages(prompt)
    else:
        made[columns.PROMPT] = _one_message("user", _require_text(prompt))
    completion = batch[columns.COMPLETION].combine_chunks()
    if columns.TOOL_CALLS in batch.column_names:
        made[columns.COMPLETION] = _answers(completion, batch[columns.TOOL_CALLS])
    else:
        made[columns.COMPLETION] = _one_message("assistant", completion)
    return pa.table({name: made[name] for name in order})


def _answers(texts: Any, calls: Any) -> Any:
    """Turns answers into messages, with `tool_calls` if there are any."""
    import pyarrow as pa

    pairs = zip(texts.to_pylist(), calls.to_pylist(), strict=True)
    written = [json.dumps(answer_message(text, called), ensure_ascii=False) for text, called in pairs]
    offsets = pa.array(np.arange(len(written) + 1, dtype=np.int32))
    return pa.ListArray.from_arrays(
        offsets, pa.ExtensionArray.from_storage(pa.json_(), pa.array(written, pa.string()))
    )


def _one_message(role: str, texts: Any) -> Any:
    import pyarrow as pa

    count = len(texts)
    roles = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, dtype=np.int32)), [role]).cast(pa.string())
    messages = pa.StructArray.from_arrays([roles, texts.cast(pa.string())], names=["role", "content"])
    return pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32)), messages)


def _require_text(prompts: Any) -> Any:
    import pyarrow.compute as pc

    if prompts.null_count or pc.any(pc.equal(pc.utf8_trim_whitespace(prompts), "")).as_py():
        raise DataError("A prompt is empty; every prompt needs at least one character that is not white space.")
    return prompts


def _require_messages(prompts: Any) -> None:
    import pyarrow.compute as pc

    if prompts.null_count or pc.any(pc.equal(pc.list_value_length(prompts), 0)).as_py():
        raise DataError("A prompt is empty; every prompt needs at least one message.")
    messages = prompts.flatten()
    if _are_simple(messages):
        return
    for prompt in prompts.to_pylist():  # JSON, or a struct in which a message that calls tools has no content
        canonical_messages([json.loads(message) if isinstance(message, str) else message for message in prompt])


def _are_simple(messages: Any) -> bool:
    """Tells whether all messages are structs with a role and a content."""
    import pyarrow as pa

    if not pa.types.is_struct(messages.type):
        return False
    names = {messages.type.field(index).name for index in range(messages.type.num_fields)}
    return {"role", "content"} <= names and not (
        messages.field("role").null_count + messages.field("content").null_count
    )


def _features(answers: Dataset, carried: list[str]) -> Any:
    from datasets import Features, Json, List, Value

    message = {"role": Value("string"), "content": Value("string")}
    completion = Json() if columns.TOOL_CALLS in answers.column_names else message
    prompt = answers.features[columns.PROMPT]
    messages = List(message) if getattr(prompt, "dtype", None) == "string" else prompt
    return Features(
        {columns.PROMPT: messages, columns.COMPLETION: List(completion)}
        | {name: answers.features[name] for name in carried}
    )
