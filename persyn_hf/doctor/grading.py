"""Checks of the sources of quality: their packages, their templates and the references they must read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from persyn_hf import columns
from persyn_hf.config import Judge, Quality, QualitySource, Teacher
from persyn_hf.doctor.findings import Findings
from persyn_hf.errors import ConfigError, PersynError, ScoringError
from persyn_hf.scoring.json_schema import schema_of_body

if TYPE_CHECKING:
    from datasets import Dataset

#: A plain number, which every verifier reads.
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
#: Verifiers of this package that read a reference. Others are not called, since they may do anything.
_OURS = ("math", "exact", "reasoning-gym", "json-schema")
#: Answer that every template and verifier accepts.
_SOME_ANSWER = "1"


def quality_parts(quality: Quality) -> Iterator[tuple[str, QualitySource]]:
    """Yields the sources of quality with their keys: `quality`, or `quality.sources[0]` and so on."""
    if quality.sources is None:
        yield "quality", quality.parts[0]
        return
    for place, part in enumerate(quality.sources):
        yield f"quality.sources[{place}]", part


def check_quality(quality: Quality, sample: Dataset | None) -> Findings:
    """Checks that every verifier can be loaded and every judge's template can be rendered.

    Args:
        quality (`Quality`): Section of the configuration.
        sample (`Dataset`, *optional*): Prompts; the first one is rendered.
    """
    from persyn_hf.scoring.mixing import read_sources
    from persyn_hf.scoring.verifiers import find_verifier

    found = Findings()
    with found.failing("quality", "quality"):
        read_sources(quality)
    for key, part in quality_parts(quality):
        if part.verifier is not None:
            with found.failing("quality", f"{key}.verifier"):
                find_verifier(part.verifier, part.trust_verifier)
        if part.judge is not None and part.judge.template is not None:
            with found.failing("quality", f"{key}.judge.template"):
                _fill_in(part.judge, sample)
    return found


def _fill_in(judge: Judge, sample: Dataset | None) -> None:
    """Renders a judge's template once.

    Raises:
        ConfigError: If the template is invalid or uses an unknown variable.
    """
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    prompt = "Hi" if sample is None or not len(sample) else sample[0][columns.PROMPT]
    try:
        template = SandboxedEnvironment(undefined=StrictUndefined).from_string(judge.template or "")
        template.render(prompt=columns.prompt_text(prompt), completion=_SOME_ANSWER, answer=_SOME_ANSWER)
    except TemplateError as error:
        raise ConfigError(
            f"`judge.template`: {error}. It must be a Jinja template over `prompt`, `completion` and `answer`."
        ) from error


def unreadable_references(quality: Quality, prompts: Dataset, teachers: Sequence[Teacher] = ()) -> dict[int, str]:
    """Looks for references that a verifier cannot read.

    Each verifier of this package is called once for each distinct reference, with an answer that every verifier
    accepts. The user's own functions are not called, since they may do anything.

    Args:
        quality (`Quality`): The section, whose verifiers are there.
        prompts (`Dataset`): With `answer`, where there are references.
        teachers (`Sequence[Teacher]`, *optional*): A schema that all of them are asked for stands where a prompt has
            none.

    Returns:
        `dict[int, str]`: Problem by row.
    """
    verifiers = dict(_readers(quality))
    if not verifiers:
        return {}
    answers, forms = (
        prompts[name][:] if name in prompts.column_names else [None] * len(prompts)
        for name in (columns.ANSWER, columns.RESPONSE_FORMAT)
    )
    asked = [schema_of_body(teacher.sampling.extra_body) for teacher in teachers]
    known: dict[str, str | None] = {}
    wrong: dict[int, str] = {}
    for row, (answer, form) in enumerate(zip(answers, forms, strict=True)):
        text = repr((answer, form))
        if text not in known:
            # A schema may stand in the form that an answer is asked for.
            schemas = [form] if form is not None else asked
            known[text] = _problem(verifiers, answer, schemas if answer is None else [])
        if (problem := known[text]) is not None:
            wrong[row] = problem
    return wrong


def _readers(quality: Quality) -> Iterator[tuple[str, Callable[[object], None]]]:
    """Yields the verifiers of this package that need a reference, each with a function that reads one."""
    from persyn_hf.scoring.verifiers import find_verifier

    for part in quality.parts:
        if part.verifier not in _OURS:
            continue
        verifier = find_verifier(part.verifier)

        def read(reference: object, verifier: Callable[[object, str, object], float] = verifier) -> None:
            verifier("", _SOME_ANSWER, reference)

        yield part.verifier, read


def _problem(
    verifiers: Mapping[str, Callable[[object], None]], answer: object, schemas: Sequence[object]
) -> str | None:
    pairs = ((name, one) for name in verifiers for one in (schemas if name == "json-schema" else ()) or [answer])
    for name, reference in pairs:
        read = verifiers[name]
        if reference is None:
            return f"`{name}` needs a reference, but the prompt has none (null)"
        if isinstance(reference, str) and _NUMBER.fullmatch(reference.strip()) and name in ("math", "exact"):
            continue
        try:
            read(reference)
        except PersynError as error:
            return str(error) if isinstance(error, ScoringError) else f"`{name}`: {error}"
    return None
