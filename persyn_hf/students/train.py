"""`train_student`: fine-tunes a student on a personalised set and writes its card."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persyn_hf import columns
from persyn_hf.config import Training, merged, read_settings, require_known
from persyn_hf.config.publishing import StudentRepository
from persyn_hf.errors import ConfigError, DataError, ScoringError, StudentError
from persyn_hf.messages import Message, Prompt, answer_message, said, without_nulls
from persyn_hf.models.identity import resolve_revision
from persyn_hf.packages import require
from persyn_hf.prompts.sources import read_table
from persyn_hf.students.fitting import Lesson, TrainingReport, fit
from persyn_hf.students.labels import INPUT_IDS, LABELS, count_rows, label_row, learns_something
from persyn_hf.tables import require_table

if TYPE_CHECKING:
    from datasets import Dataset

    from persyn_hf.models.rendering import Rendered
    from persyn_hf.publishing.push import StudentPush


@dataclass(frozen=True)
class TrainedStudent:
    """A trained student.

    Args:
        path (`Path`): Folder with the model, the tokenizer, the card and `training.json`.
        report (`TrainingReport`): Report of the training run.
        url (`str`, *optional*): URL of the repository it was pushed to.
    """

    path: Path
    report: TrainingReport
    url: str | None = None


def train_student(
    data: Dataset | str | os.PathLike[str],
    student: str,
    output_dir: str | os.PathLike[str],
    training: Training | Mapping[str, Any] | None = None,
    *,
    revision: str | None = None,
    seed: int = 0,
    resume: bool = True,
    progress: bool = True,
    **options: Any,
) -> TrainedStudent:
    """Fine-tunes a student on a personalised set with TRL's `SFTTrainer`; the loss is on completion tokens only.

    Rows are rendered as in scoring: a completion ends with its end-of-turn token. A truncated answer (`finish_reason`
    is neither `stop` nor null, or `max_length` is reached) has no end-of-turn token. Before the first step, a batch
    from the trainer's collator is checked. On a machine with several GPUs, use `accelerate launch`.

    Args:
        data (`Dataset`, `str` or `PathLike`): `prompt` and `completion` from [`personalize`], or routed answers with
            string completions; or the path or Hub id of such a table.
        student (`str`): Hub repository id or local folder of a causal language model.
        output_dir (`str` or `PathLike`): Output folder of the trained student.
        training (`Training` or `Mapping`, *optional*): The section `training` of a configuration, or its keys.
        revision (`str`, *optional*): Commit, tag or branch of the student.
        seed (`int`, defaults to 0): Random seed of the row order and of adapters.
        resume (`bool`, defaults to `True`): Resume an interrupted run; a finished run is not repeated.
        progress (`bool`, defaults to `True`): Show a bar and the loss.
        options: Keys of [`Training`] (`learning_rate`, `max_steps` …), which replace those of `training`, and keys of
            [`StudentRepository`] (`push_to_hub`, `private`, `license`).

    Returns:
        `TrainedStudent`: Folder and report.

    Raises:
        ConfigError: If a setting is wrong, or `output_dir` holds another training run.
        DataError: If the table has the wrong format, or nothing is left to learn.
        PublishError: If `push_to_hub` cannot be written to; checked before training.
        StudentError: If the student's chat template hides completions.
        MissingExtraError: If TRL is not installed.

    Example:
        >>> train_student("runs/demo/dataset", "org/student", "runs/student", {"max_steps": 9})  # doctest: +SKIP
    """
    require("train a student", "trl", "torch", "transformers")
    publishing = {name: value for name, value in options.items() if name in StudentRepository.model_fields}
    recipe_options = {name: value for name, value in options.items() if name not in publishing}
    known = [*Training.model_fields, *StudentRepository.model_fields]
    require_known(Training, recipe_options, "train_student", known)
    recipe = _recipe(training, recipe_options)
    repository = merged(StudentRepository, None, publishing, "train_student")
    with _bars(progress):
        push = _checked_push(repository)
        resolved = resolve_revision(student, revision)
        lesson = _lesson(data, student, resolved, recipe)
        folder = Path(output_dir)
        report = fit(lesson, student, resolved, folder, recipe, seed, resume=resume, progress=progress)
        return TrainedStudent(folder, report, _publish(folder, report, data, push, repository))


def _lesson(data: Dataset | str | os.PathLike[str], student: str, revision: str, recipe: Training) -> Lesson:
    """Renders a table, or the table at a location, as training data."""
    table = read_table(os.fspath(data), "data") if isinstance(data, str | os.PathLike) else data
    require_table(table, "train_student")
    columns.require_columns(table.column_names, (columns.PROMPT, columns.COMPLETION), "train_student")
    tokenizer = _tokenizer(student, revision, recipe)
    ends = end_of_turn(tokenizer)
    rows = training_rows(table, tokenizer, recipe.max_length)
    return Lesson(rows, count_rows(rows, len(table), ends), ends, tokenizer)


def training_rows(table: Dataset, tokenizer: Any, max_length: int) -> Dataset:
    """Renders answers as the student reads them, with labels on the completions' tokens.

    Args:
        table (`Dataset`): The columns `prompt` and `completion`; `finish_reason` is read if present.
        tokenizer (`PreTrainedTokenizerBase`): The student's tokenizer.
        max_length (`int`): Longest row in tokens. Longer rows are cut; rows without completion tokens are left out.

    Returns:
        `Dataset`: Rows of `input_ids` and `labels`.

    Raises:
        DataError: If a completion is empty or no answer is left.
        StudentError: If a completion cannot be found in the text that the chat template renders.
    """
    from datasets import Features, List, Value

    token = List(Value("int64"))
    rows = table.map(
        _label_batch,
        batched=True,
        batch_size=500,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=table.column_names,
        features=Features({INPUT_IDS: token, LABELS: token}),
        load_from_cache_file=False,
        desc="render",
    ).filter(learns_something, load_from_cache_file=False, desc="rows that learn")
    if len(rows) == 0:
        raise DataError(
            f"Nothing is left to learn: all {len(table)} prompts alone fill `max_length` ({max_length} tokens). "
            "Increase `max_length`."
        )
    return rows


def end_of_turn(tokenizer: Any) -> frozenset[int]:
    """The token that ends an assistant's turn in this student's template.

    Raises:
        StudentError: If the template hides completions.
    """
    rendered = _render(tokenizer, ["Hi"], ["Hello"], ["stop"])
    return frozenset({rendered[0].completion_ids[-1]})


@contextmanager
def _bars(progress: bool) -> Iterator[None]:
    """Hides the progress bars of `datasets` and transformers too, unless `progress`."""
    import datasets
    from transformers.utils import logging

    hide_tables = not progress and not datasets.are_progress_bars_disabled()
    hide_weights = not progress and logging.is_progress_bar_enabled()
    if hide_tables:
        datasets.disable_progress_bars()
    if hide_weights:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide_tables:
            datasets.enable_progress_bars()
        if hide_weights:
            logging.enable_progress_bar()


def _recipe(training: Training | Mapping[str, Any] | None, options: Mapping[str, Any]) -> Training:
    if isinstance(training, Mapping):
        training = read_settings(Training, training, "training")
    return merged(Training, training, options, "train_student")


def _tokenizer(student: str, revision: str, recipe: Training) -> Any:
    from persyn_hf.models.files import ModelFiles
    from persyn_hf.models.loading import load_tokenizer

    tokenizer = load_tokenizer(ModelFiles(student, revision, "The student", StudentError))
    if recipe.chat_template is not None:
        try:
            tokenizer.chat_template = Path(recipe.chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"`training.chat_template`: {recipe.chat_template} cannot be read: {error.strerror}."
            ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _label_batch(batch: dict[str, list[Any]], tokenizer: Any, max_length: int) -> dict[str, list[list[int]]]:
    calls = batch.get(columns.TOOL_CALLS) or [None] * len(batch[columns.COMPLETION])
    completions = [_answer(*pair) for pair in zip(batch[columns.COMPLETION], calls, strict=True)]
    reasons = batch.get(columns.FINISH_REASON) or [None] * len(completions)
    rendered = _render(tokenizer, batch[columns.PROMPT], completions, reasons, batch.get(columns.TOOLS))
    rows = [label_row(one.prompt_ids, one.completion_ids, max_length) for one in rendered]
    return {name: [row[name] for row in rows] for name in (INPUT_IDS, LABELS)}


def _render(
    tokenizer: Any,
    prompts: Sequence[Prompt],
    completions: Sequence[str | Message],
    reasons: Sequence[str | None],
    tools: Sequence[object] | None = None,
) -> list[Rendered]:
    from persyn_hf.models.rendering import render_answers

    try:
        return render_answers(tokenizer, prompts, completions, reasons, tools=tools)
    except ScoringError as error:
        raise StudentError(
            f"{error} A student cannot be trained with this template. Set `training.chat_template` to a file with one "
            "that shows the assistant's content unchanged (TRL has some in `trl/chat_templates`)."
        ) from error


def _answer(completion: Any, calls: Any) -> str | Message:
    """Reads a completion, a string or one assistant message: its text, or its message if it calls tools."""
    if isinstance(completion, str):
        message = answer_message(completion, calls)
    elif isinstance(completion, Sequence) and len(completion) == 1 and completion[0].get("role") == "assistant":
        message = without_nulls(completion[0])
    else:
        raise DataError(f"A completion must be a string or one assistant message, got {completion!r:.120}.")
    if message.get("tool_calls"):
        return {"content": None, **message}
    text = said(message)
    if not text.strip():
        raise DataError("A completion is empty. Remove such rows, as `personalize` does.")
    return text


def _publish(
    folder: Path,
    report: TrainingReport,
    data: Dataset | str | os.PathLike[str],
    push: StudentPush | None,
    repository: StudentRepository,
) -> str | None:
    """Writes the card and pushes, in the main process only."""
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return None
    from persyn_hf.publishing.cards import student_card

    dataset = os.fspath(data) if isinstance(data, str | os.PathLike) else None
    location = repository.push_to_hub or str(folder)
    facts = report.to_dict() | {"teachers": _rows_of_teachers(data)}
    card = student_card(facts, location=location, dataset_location=dataset, license=repository.license)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return push.send(folder, card).url if push is not None else None


def _rows_of_teachers(data: Dataset | str | os.PathLike[str]) -> dict[str, int]:
    """Counts the rows of each teacher, the most frequent first; empty if the table does not name teachers."""
    table = read_table(os.fspath(data), "data") if isinstance(data, str | os.PathLike) else data
    return dict(Counter(table[columns.TEACHER][:]).most_common()) if columns.TEACHER in table.column_names else {}


def _checked_push(repository: StudentRepository) -> StudentPush | None:
    """Prepares the push that follows the training, and checks it before training starts."""
    if repository.push_to_hub is None:
        return None
    from persyn_hf.publishing.push import StudentPush

    push = StudentPush(repository.push_to_hub, repository.private, allow_findings=repository.allow_findings)
    push.check()
    return push
