"""Generation of answers: by every teacher, by the routed teacher, and as a map function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from pydantic import ValidationError

from persyn_hf import columns
from persyn_hf.config import Teacher, merged, require_distinct_teachers
from persyn_hf.config.run import GenerationOptions
from persyn_hf.endpoints.event_loop import run_to_end
from persyn_hf.errors import ConfigError
from persyn_hf.generation.forms import require_forms_understood
from persyn_hf.generation.incoming import prompt_table
from persyn_hf.generation.jobs import Plan, resolved
from persyn_hf.generation.lane import RetryPolicy
from persyn_hf.generation.run import Options, ask_teachers
from persyn_hf.generation.table import (
    FinishedColumns,
    FinishedTable,
    generated_features,
    require_known_routes,
    require_ranking,
)
from persyn_hf.ledger.ledger import Ledger, LedgerLike, open_ledger
from persyn_hf.tables import require_batch

TeacherLike = Teacher | Mapping[str, object]


def generate_parallel(
    prompts: Dataset | Iterable[Mapping[str, object] | str],
    teachers: Sequence[TeacherLike],
    ledger: LedgerLike = None,
    seed: int = 0,
    progress: bool = True,
    *,
    policy: RetryPolicy | None = None,
    **options: Any,
) -> Dataset:
    """Generates an answer to every prompt by every teacher.

    A row that fails permanently has `error` set and a null `completion`; the run continues.

    Args:
        prompts (`Dataset` or iterable): Rows with `prompt` (strings, or lists of chat messages); other columns are
            kept. A prompt may occur several times if integers in `turn`, `sample` and `attempt` (0 if absent or null)
            distinguish its rows: each row gets its own answer, seed and ledger key.
        teachers (`Sequence[Teacher]`): Teachers, or mappings with the same keys.
        ledger (`Ledger`, path or `None`): Ledger that stores answers as they arrive; existing answers are reused.
        seed (`int`, defaults to 0): Random seed; the seed of a row also depends on its prompt.
        progress (`bool`, defaults to `True`): Whether to show progress.
        policy (`RetryPolicy`, *optional*): Retries and circuit breaker.
        options: Keys of [`GenerationOptions`]: `max_cost` and `drop_truncated`.

    Returns:
        `Dataset`: One row per prompt row and teacher, prompt by prompt, with the columns `teacher`, `completion`,
        `reasoning`, `finish_reason`, `leak`, `prompt_tokens`, `completion_tokens`, `cached_tokens`,
        `reasoning_tokens`, `usage_source`, the sampling parameters (`temperature`, `top_p`, `max_tokens`, `stop`,
        `seed`), `system_prompt`, `rerouted_from` and `error` added (and `prompt_id` if absent).

    Raises:
        ConfigError: If a teacher is not valid or its name is used twice, or a local model cannot be found.
        DataError: If a prompt is empty or occurs twice with the same numbers. No requests were sent then.
        LedgerError: If the ledger cannot be used, or the disk has no space for a large table.
        KeyboardInterrupt: After Ctrl-C, once the requests in flight have finished; at once after a second one.

    Example:
        >>> answers = generate_parallel(
        ...     ["Name a colour."], [{"name": "a", "model": "org/model", "endpoint": "http://localhost:8000"}]
        ... )  # doctest: +SKIP
    """
    asked = merged(GenerationOptions, None, options, "generate_parallel")
    chosen = _teachers(teachers)
    plan = Plan(prompt_table(prompts, "generate_parallel"), [resolved(one) for one in chosen], _seed(seed), False)
    return _generate(plan, ledger, _options(chosen, progress, policy, asked.max_cost), asked.drop_truncated)


def generate_routed(
    routed: Dataset | Iterable[Mapping[str, object]],
    teachers: Sequence[TeacherLike],
    ledger: LedgerLike = None,
    seed: int = 0,
    progress: bool = True,
    *,
    score_names: Sequence[str] | None = None,
    policy: RetryPolicy | None = None,
    **options: Any,
) -> Dataset:
    """Generates an answer to each prompt by the teacher that its `route` names.

    Args:
        routed (`Dataset` or iterable): Rows with `prompt` and `route`; other columns are kept. `turn`, `sample` and
            `attempt` as in [`generate_parallel`].
        teachers, ledger, seed, progress, policy, options: As in [`generate_parallel`].
        score_names (`Sequence[str]`, *optional*): The router's `teachers`, in the order of `route_scores`; defaults to
            the names of `teachers`. Used if a teacher has `on_teacher_down: reroute`.

    Returns:
        `Dataset`: The same rows, in the same order, with the same columns added. If a teacher was down and another one
        took its row, `teacher` is the latter and `rerouted_from` the former.

    Raises:
        RouterMismatchError: If a route names none of the teachers.
        ConfigError, DataError, LedgerError: As in [`generate_parallel`].

    Example:
        >>> data = generate_routed(prompts.map(router, batched=True), teachers, ledger="l.sqlite")  # doctest: +SKIP
    """
    asked = merged(GenerationOptions, None, options, "generate_routed")
    chosen = _teachers(teachers)
    plan = _routed_plan(routed, chosen, seed, score_names)
    return _generate(plan, ledger, _options(chosen, progress, policy, asked.max_cost), asked.drop_truncated)


def persyn_generate(
    example: Mapping[str, Any],
    teacher: TeacherLike | None = None,
    teachers: Sequence[TeacherLike] | None = None,
    ledger: str | None = None,
    seed: int = 0,
    score_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Generates the answers of one row or a batch, by one teacher or by each row's `route`; for `Dataset.map`.

    Args:
        example (`Mapping[str, Any]`): A row, or a batch of rows, with `prompt` (and `route` with `teachers`). `turn`,
            `sample` and `attempt` as in [`generate_parallel`].
        teacher (`Mapping` or `Teacher`, *optional*): Teacher of every row; a mapping has a stable fingerprint.
        teachers (`Sequence`, *optional*): Teachers that `route` names. Pass exactly one of `teacher` and `teachers`.
        ledger (`str`, *optional*): Path of the ledger; strongly advised, since one exception makes `map` drop finished
            rows.
        seed (`int`, defaults to 0): Random seed, as in [`generate_parallel`], so that both give the same answers.
        score_names (`Sequence[str]`, *optional*): As in [`generate_routed`].

    Returns:
        `dict`: `prompt_id` and the generated columns: scalars for a row, lists for a batch.

    Example:
        >>> routed.map(
        ...     persyn_generate, batched=True, fn_kwargs={"teachers": teachers, "ledger": "ledger.sqlite"}
        ... )  # doctest: +SKIP
    """
    if (teacher is None) == (teachers is None):
        raise ConfigError("persyn_generate needs exactly one of `teacher` and `teachers`.")
    require_batch(example, "persyn_generate")
    columns.require_columns(example, [columns.PROMPT], "persyn_generate")
    chosen = _teachers([teacher] if teacher is not None else teachers or [])
    batched, values = _batch(example, None if teachers is not None else chosen[0].name)
    if not values[columns.PROMPT]:
        return {name: [] for name in (columns.PROMPT_ID, *generated_features(chosen, columns.TOOLS in values))}
    rows = [dict(zip(values, cells, strict=True)) for cells in zip(*values.values(), strict=True)]
    plan = _routed_plan(rows, chosen, seed, score_names)
    with open_ledger(ledger) as book:
        finished = FinishedColumns(plan, book)
        _ask(plan, book, _options(chosen, False, None, None), finished)
        made = finished.values()
    return made if batched else {name: column[0] for name, column in made.items()}


def _batch(example: Mapping[str, Any], teacher: str | None) -> tuple[bool, dict[str, list[Any]]]:
    """Converts a row to a batch, and returns whether it was one already: a list of prompts, each text or messages."""
    prompt = example[columns.PROMPT]
    batched = not isinstance(prompt, str) and not (len(prompt) > 0 and isinstance(prompt[0], Mapping))
    if teacher is None:
        columns.require_columns(example, [columns.ROUTE], "persyn_generate")
    names = [columns.PROMPT, *([columns.ROUTE] if teacher is None else [])]
    names += [columns.ROUTE_SCORES] if teacher is None and columns.ROUTE_SCORES in example else []
    names += [name for name in (*columns.ROW_NUMBERS, columns.RESPONSE_FORMAT, columns.TOOLS) if name in example]
    values = {name: list(example[name]) if batched else [example[name]] for name in names}
    if teacher is not None:
        values[columns.ROUTE] = [teacher] * len(values[columns.PROMPT])
    return batched, values


@dataclass(frozen=True)
class GenerationSummary:
    """Counts of one teacher's answers.

    Args:
        answers, errors, truncated (`int`): Number of rows with an answer, with an error, and with a truncated answer.
        prompt_tokens, completion_tokens (`int`): Sums over the rows whose token counts are known.
        leaks (`int`): Number of answers with special tokens or an invented turn.
        cached_tokens, reasoning_tokens (`int`): Prompt tokens from a cache, and completion tokens for reasoning.
    """

    answers: int
    errors: int
    truncated: int
    prompt_tokens: int
    completion_tokens: int
    leaks: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


def summarize_generation(dataset: Dataset) -> dict[str, GenerationSummary]:
    """Counts answers, failures, truncated answers, leaks and tokens by teacher.

    Args:
        dataset (`Dataset`): Table from [`generate_parallel`] or [`generate_routed`].
    """
    columns.require_columns(dataset.column_names, columns.GENERATED_STAGE, "summarize_generation")
    counts: dict[str, list[int]] = {}
    counted = (columns.PROMPT_TOKENS, columns.COMPLETION_TOKENS, columns.CACHED_TOKENS, columns.REASONING_TOKENS)
    names = [name for name in (*columns.GENERATED_STAGE, *counted, columns.LEAK) if name in dataset.column_names]
    for batch in dataset.select_columns([*dict.fromkeys(names)]).with_format(None).iter(1000):
        for index, name in enumerate(batch[columns.TEACHER]):
            count = counts.setdefault(name, [0] * 8)
            failed = batch[columns.ERROR][index] is not None
            count[0] += not failed
            count[1] += failed
            count[2] += columns.is_cut(batch[columns.FINISH_REASON][index])
            count[5] += batch.get(columns.LEAK, {index: None})[index] is not None
            for place, counter in zip((3, 4, 6, 7), counted, strict=True):
                count[place] += batch.get(counter, {index: None})[index] or 0
    return {name: GenerationSummary(*count) for name, count in counts.items()}


def _teachers(teachers: Sequence[TeacherLike]) -> list[Teacher]:
    if isinstance(teachers, Teacher | Mapping):
        teachers = [teachers]
    chosen = []
    for position, teacher in enumerate(teachers):
        try:
            chosen.append(teacher if isinstance(teacher, Teacher) else Teacher.model_validate(dict(teacher)))
        except ValidationError as error:
            # The error omits the inputs, because a text may be a misplaced secret.
            lines = [f"`{'.'.join(map(str, e['loc']))}`: {e['msg']}" for e in error.errors(include_url=False)]
            raise ConfigError(f"teachers[{position}]: {'; '.join(lines)}.") from None
    if not chosen:
        raise ConfigError("`teachers` is empty; pass at least one.")
    try:
        require_distinct_teachers(chosen)
    except ValueError as error:
        raise ConfigError(f"{error}.") from None
    return chosen


def _seed(seed: int) -> int:
    if not 0 <= seed < 2**31:
        raise ConfigError(f"`seed` must be in [0, 2**31), got {seed}.")
    return seed


def _options(
    teachers: Sequence[Teacher], progress: bool, policy: RetryPolicy | None, max_cost: float | None
) -> Options:
    if max_cost is not None and not any(teacher.has_price for teacher in teachers):
        raise ConfigError(
            "`max_cost` needs prices: set `price_per_million_prompt_tokens` and "
            "`price_per_million_completion_tokens` of the teachers that cost money."
        )
    return Options(progress, policy or RetryPolicy(), max_cost)


def _routed_plan(
    routed: Dataset | Iterable[Mapping[str, object]],
    teachers: Sequence[Teacher],
    seed: int,
    score_names: Sequence[str] | None,
) -> Plan:
    table = prompt_table(routed, "generate_routed")
    require_known_routes(table, teachers)
    ranking = require_ranking(table, teachers, score_names)
    return Plan(table, [resolved(one) for one in teachers], _seed(seed), True, ranking)


def _generate(plan: Plan, ledger: LedgerLike, options: Options, drop_truncated: bool) -> Dataset:
    with open_ledger(ledger) as book:
        table = FinishedTable(plan, book, drop_truncated)
        _ask(plan, book, options, table)
        return table.finish()


def _ask(plan: Plan, ledger: Ledger, options: Options, table: FinishedTable) -> None:
    require_forms_understood(plan.table, [asked.teacher for asked in plan.asked])
    run_to_end(lambda interrupt: ask_teachers(plan, ledger, options, interrupt, table.advance))
