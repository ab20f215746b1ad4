"""The sources of quality before anything is scored: are they there, and can they read the references?"""

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
#: The verifiers of this package that read a reference; others may do anything with it.
_OURS = ("math", "exact", "reasoning-gym", "json-schema")
#: An answer that no template and no verifier has trouble with.
_SOME_ANSWER = "1"


def quality_parts(quality: Quality) -> Iterator[tuple[str, QualitySource]]:
    """The sources of quality with their keys in the configuration: `quality`, or `quality.sources[0]` and so on."""
    if quality.sources is None:
        yield "quality", quality.parts[0]
        return
    for place, part in enumerate(quality.sources):
        yield f"quality.sources[{place}]", part


def check_quality(quality: Quality, sample: Dataset | None) -> Findings:
    """Finds every verifier with its packages, and fills in every judge's template.

    Args:
        quality (`Quality`): The section.
        sample (`Dataset`, *optional*): Prompts, of which the first fills in the templates.
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
        ConfigError: If it is no template, or asks for what there is not.
    """
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    prompt = "Hi" if sample is None or not len(sample) else sample[0][columns.PROMPT]
    try:
        template = SandboxedEnvironment(undefined=StrictUndefined).from_string(judge.template or "")
        template.render(prompt=columns.prompt_text(prompt), completion=_SOME_ANSWER, answer=_SOME_ANSWER)
    except TemplateError as error:
        raise ConfigError(
            f"`judge.template`: {error}. It is a Jinja template over `prompt`, `completion` and `answer`."
        ) from error


def unreadable_references(quality: Quality, prompts: Dataset, teachers: Sequence[Teacher] = ()) -> dict[int, str]:
    """Looks for references that a verifier cannot read.

    Each different reference is given to each verifier once, with an answer that any of them can read. Functions of
    the user's are not called: they may do anything.

    Args:
        quality (`Quality`): The section, whose verifiers are there.
        prompts (`Dataset`): With `answer`, where there are references.
        teachers (`Sequence[Teacher]`, *optional*): A schema that all of them are asked for stands where a prompt has
            none.

    Returns:
        `dict[int, str]`: Why, by row.
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
    """What reads a reference, by the verifiers of this package that need one."""
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
            return f"`{name}` needs a reference and it has none (null)"
        if isinstance(reference, str) and _NUMBER.fullmatch(reference.strip()) and name in ("math", "exact"):
            continue
        try:
            read(reference)
        except PersynError as error:
            return str(error) if isinstance(error, ScoringError) else f"`{name}`: {error}"
    return None
