"""Benchmark texts for decontamination: files, held-out prompts and lm-eval tasks."""

from __future__ import annotations

from collections.abc import Iterator

from persyn_hf import columns
from persyn_hf.config import COMPARED, Compare, Hygiene, LmEval, Prompts
from persyn_hf.errors import ConfigError
from persyn_hf.hygiene.contamination import Contamination
from persyn_hf.packages import require
from persyn_hf.prompts.reading import load_prompts


def load_benchmarks(hygiene: Hygiene, compare: Compare | None, where: str = "hygiene") -> Contamination:
    """Reads the texts that `hygiene.decontaminate` names.

    Args:
        hygiene (`Hygiene`): Section with the files and datasets, or `compare`.
        compare (`Compare`, *optional*): Section `compare` of the configuration.
        where (`str`, defaults to `"hygiene"`): Name of the section in errors.

    Raises:
        ConfigError: If a source cannot be read, or a column or the section `compare` is missing.
        DataError: If a row holds no text.
        MissingExtraError: If lm-eval tasks are named and `lm-eval` is not installed.
    """
    return Contamination.of(_texts(hygiene, compare, where), hygiene.ngram_size)


def compared_benchmarks(compare: Compare, size: int) -> Contamination:
    """Reads the held-out prompts and lm-eval tasks of a comparison."""
    return Contamination.of(_compared(compare, "compare"), size)


def _texts(hygiene: Hygiene, compare: Compare | None, where: str) -> Iterator[str]:
    for source in hygiene.decontaminate:
        if source == COMPARED:
            if compare is None:
                raise ConfigError(f"{where}.decontaminate: `{COMPARED}` needs the section `compare`.")
            yield from _compared(compare, where)
        else:
            prompts = Prompts(source=source, column=hygiene.decontaminate_column)
            yield from _prompts(prompts, f"{where}.decontaminate")


def _compared(compare: Compare, where: str) -> Iterator[str]:
    yield from _prompts(compare.held_out, f"{where}: compare.held_out")
    if compare.lm_eval is not None:
        yield from task_texts(compare.lm_eval)


def _prompts(prompts: Prompts, where: str) -> Iterator[str]:
    for prompt in load_prompts(prompts, where, unique=False)[columns.PROMPT]:
        yield columns.prompt_text(prompt)


def task_texts(settings: LmEval) -> Iterator[str]:
    """Yields the questions of lm-eval tasks in the harness's wording, without solved examples.

    Args:
        settings (`LmEval`): Section with the task names.

    Raises:
        ConfigError: If a task is unknown.
        MissingExtraError: If `lm-eval` is not installed.
    """
    require("read the questions of benchmarks", "lm-eval")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=settings.include_path)
    for name in settings.tasks:
        if not manager.match_tasks([name]):
            raise ConfigError(
                f"`compare.lm_eval.tasks`: lm-eval has no task {name}; list tasks with `lm-eval ls tasks`."
            )
        for task in manager.load([name])["tasks"].values():
            for document in task.eval_docs:
                text = task.doc_to_text(document)
                yield text if isinstance(text, str) else " ".join(v for v in document.values() if isinstance(v, str))
