"""From routed answers to the table that a student is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from persyn_hf import columns
from persyn_hf.errors import DataError
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
)
_BATCH = 10_000
_KEPT, _FAILED, _EMPTY, _TRUNCATED = range(4)


@dataclass(frozen=True)
class Kept:
    """How many answers became training rows, and what happened to the others.

    Args:
        rows (`int`): Training rows.
        failed (`int`): Answers with `error` set; never trained on.
        truncated (`int`): Answers cut by `max_tokens`, by a filter or for a reason that is not known, and left out.
        empty (`int`): Answers without text and left out.
    """

    rows: int
    failed: int
    truncated: int
    empty: int

    @property
    def share(self) -> float:
        """Training rows per answer asked for, 0 to 1."""
        asked = self.rows + self.failed + self.truncated + self.empty
        return self.rows / asked if asked else 0.0


def personalize(answers: Dataset, keep_truncated: bool = False) -> Dataset:
    """Makes the personalised set: TRL's conversational prompt–completion form.

    Args:
        answers (`Dataset`): The routed answers of [`generate_routed`].
        keep_truncated (`bool`, defaults to `False`): Keep completions that were cut (`finish_reason` is not `stop`);
            TRL would teach the student to end its turn there.

    Returns:
        `Dataset`: `prompt` and `completion` as message lists, with `prompt_id`, `teacher`, `turn`, `sample`,
        `attempt`, `route_scores`, `finish_reason` and the token counts where the answers had them. Failed and empty
        answers are left out.

    Raises:
        MissingColumnError: If the table is not one of answers.
        DataError: If nothing is left to train on, or a prompt is empty.
    """
    require_table(answers, "personalize", "answers")
    columns.require_columns(
        answers.column_names,
        (columns.PROMPT, columns.COMPLETION, columns.TEACHER, columns.FINISH_REASON),
        "personalize",
    )
    keep = np.flatnonzero(_fates(answers, keep_truncated) == _KEPT)
    if not len(keep):
        raise DataError(
            f"No answer is left to train on: of {len(answers)}, all failed, were empty or were cut. "
            "Look at the `error` and `finish_reason` columns; raise `max_tokens`, or set `keep_truncated`."
        )
    kept = answers.select(keep) if len(keep) < len(answers) else answers
    carried = [name for name in CARRIED if name in kept.column_names]
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


def count_kept(answers: Dataset, keep_truncated: bool = False) -> Kept:
    """Counts what [`personalize`] keeps and why it leaves the rest."""
    fates = np.bincount(_fates(answers, keep_truncated), minlength=4).tolist()
    return Kept(rows=fates[_KEPT], failed=fates[_FAILED], truncated=fates[_TRUNCATED], empty=fates[_EMPTY])


def _fates(answers: Dataset, keep_truncated: bool) -> NDArray[Any]:
    """What becomes of every row, `(rows,)`; read in batches, so that memory stays flat."""
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
    """Both sides as message lists; Arrow builds them from whole columns."""
    import pyarrow as pa

    made = {name: batch[name] for name in batch.column_names}
    prompt = batch[columns.PROMPT].combine_chunks()
    if pa.types.is_list(prompt.type) or pa.types.is_large_list(prompt.type):
        _require_messages(prompt)
    else:
        made[columns.PROMPT] = _one_message("user", _require_text(prompt))
    made[columns.COMPLETION] = _one_message("assistant", batch[columns.COMPLETION].combine_chunks())
    return pa.table({name: made[name] for name in order})


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
    names = {messages.type.field(index).name for index in range(messages.type.num_fields)}
    if not {"role", "content"} <= names or messages.field("role").null_count or messages.field("content").null_count:
        raise DataError(f"A chat message must have `role` and `content`, got the keys {sorted(names)}, some empty.")


def _features(answers: Dataset, carried: list[str]) -> Any:
    from datasets import Features, List, Value

    message = {"role": Value("string"), "content": Value("string")}
    prompt = answers.features[columns.PROMPT]
    messages = List(message) if getattr(prompt, "dtype", None) == "string" else prompt
    return Features(
        {columns.PROMPT: messages, columns.COMPLETION: List(message)}
        | {name: answers.features[name] for name in carried}
    )
