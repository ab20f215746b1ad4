"""Dataset, router and student cards, rendered from the templates in `hub_cards/`.

All values in a template are escaped, except `Markup`, which only persyn_hf itself creates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from persyn_hf.config import HELD_OUT_POLICIES, POLICY_LABELS, Publish, merged
from persyn_hf.errors import PublishError
from persyn_hf.publishing import markdown, metadata
from persyn_hf.publishing.local_paths import public_name, without_local_paths
from persyn_hf.publishing.metadata import join_card
from persyn_hf.publishing.provenance import Provenance

#: Entries of a router's `persyn` block that the templates read, with `None` as default.
_BLOCK: dict[str, Any] = dict.fromkeys(
    (
        "student",
        "student_revision",
        "backbone",
        "backbone_revision",
        "objective",
        "fallback",
        "reward",
        "quality",
        "prompts",
        "seed",
        "held_out",
        "library_version",
    )
)
#: Entries of a training report that the student's template reads, with `None` as default.
_REPORT: dict[str, Any] = dict.fromkeys(("student", "student_revision", "settings", "versions"))


@dataclass(frozen=True)
class Figure:
    """A figure in a card.

    Args:
        path (`str`): Path relative to the card.
        alt (`str`): Alternative text.
    """

    path: str
    alt: str


@dataclass(frozen=True)
class Run:
    """One configuration of a dataset card.

    Args:
        name (`str`): Name of the configuration.
        provenance (`Provenance`): Provenance of its rows.
        figures (`Mapping[str, Figure]`): Available figures among `allocation`, `teachers` and `reward`.
    """

    name: str
    provenance: Provenance
    figures: Mapping[str, Figure] = field(default_factory=dict)

    @property
    def block(self) -> dict[str, Any]:
        """The router's `persyn` block, with every key that the template reads."""
        return _BLOCK | dict(self.provenance.router)

    @property
    def split(self) -> str:
        """The split that the snippet loads."""
        return next(iter(self.provenance.splits), "train")


def template_folder() -> Path:
    """Finds the folder of the templates: inside the package (wheel) or next to it (editable install).

    Raises:
        PublishError: If neither folder exists.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "hub_cards", package.parent / "hub_cards"):
        if (folder / "dataset_card.md.jinja").is_file():
            return folder
    raise PublishError(f"The card templates are missing: neither {package}/hub_cards nor {package.parent}/hub_cards.")


def dataset_body(runs: Sequence[Run], *, location: str, warnings: Sequence[str] = ()) -> str:
    """Renders the body of a dataset card.

    Args:
        runs (`Sequence[Run]`): Configurations of the dataset.
        location (`str`): Repository id or folder for `load_dataset`.
        warnings (`Sequence[str]`): Sentences on conflicts of licences, for the section on limits.
    """
    level = Markup("##" if len(runs) == 1 else "###")
    return _render(
        "dataset_card.md.jinja",
        title=_title(location, "Personalised dataset"),
        runs=runs,
        location=location,
        level=level,
        warnings=warnings,
    )


def router_body(
    provenance: Provenance, *, location: str, dataset_location: str | None, figures: Mapping[str, Figure] | None = None
) -> str:
    """Renders the body of a router's model card.

    Args:
        provenance (`Provenance`): Provenance of the dataset built with the router.
        location (`str`): Repository id or folder for `pipeline`.
        dataset_location (`str`, *optional*): Repository id or folder of that dataset.
        figures (`Mapping[str, Figure]`, *optional*): As in [`Run`].
    """
    return _render(
        "router_card.md.jinja",
        title=_title(location, "Teacher router"),
        provenance=provenance,
        block=_BLOCK | dict(provenance.router),
        location=location,
        dataset_location=dataset_location,
        figures=figures or {},
        level=Markup("##"),
    )


def student_card(
    report: Mapping[str, Any],
    *,
    location: str,
    dataset_location: str | None = None,
    dataset_revision: str | None = None,
    router_location: str | None = None,
    router_revision: str | None = None,
    results: Sequence[Mapping[str, Any]] = (),
    limits: Sequence[str] = (),
    **options: Any,
) -> str:
    """Renders the card of a student that was fine-tuned on a personalised set, metadata included.

    Args:
        report (`Mapping`): Plain values about the training: `student`, `student_revision`, `seed`, `steps`, `loss`
            (nats/token), `counts`, `settings`, `versions`, and `teachers` (rows of each). Absent keys are left out of
            the card.
        location (`str`): Repository id or folder of the trained student, for `pipeline`.
        dataset_location, dataset_revision, router_location, router_revision (`str`, *optional*): Dataset that the
            student was trained on, and router that the dataset was built with.
        results (`Sequence[Mapping]`): Rows of the evaluation: `task`, `metric`, `value`, and `low`, `high`, `baseline`
            if they are known.
        limits (`Sequence[str]`): Additional sentences for the section on limits.
        options: Keys of [`Publish`] for the Hub metadata: `license` and `language`.

    Returns:
        `str`: Text of the `README.md`.

    Example:
        >>> card = student_card({"student": "org/student", "steps": 10}, location="me/student")
        >>> "base_model: org/student" in card
        True
    """
    asked = merged(Publish, None, options, "student_card", ("license", "language"))
    report = without_local_paths(report)
    dataset_location = public_name(dataset_location) if dataset_location is not None else None
    counts = report.get("counts") or {}
    facts = [
        ("training rows", counts.get("rows")),
        ("completion tokens", counts.get("learnt_tokens")),
        ("completion tokens seen in training", report.get("seen_tokens")),
        ("optimiser steps", report.get("steps")),
        ("mean training loss, nats/token", None if report.get("loss") is None else markdown.fixed(report["loss"])),
        ("seed", report.get("seed")),
    ]
    body = _render(
        "student_card.md.jinja",
        title=_title(location, "Fine-tuned student"),
        report=_REPORT | dict(report),
        teachers=report.get("teachers") or {},
        facts=[(name, value) for name, value in facts if value is not None],
        location=location,
        dataset_location=dataset_location,
        dataset_revision=dataset_revision,
        router_location=router_location,
        router_revision=router_revision,
        results=[{"baseline": None} | dict(row) for row in results],
        limits=limits,
    )
    student = report.get("student")
    head = metadata.student_metadata(location, student, dataset_location, asked.license, asked.language)
    return join_card(head, body)


def _title(location: str, kind: str) -> str:
    return location if markdown.is_repo_id(location) else kind


def _dollars(value: float | None) -> Markup:
    if value is None:
        return Markup("–")
    return Markup(f"\\${value:.2f}" if value >= 1 or value == 0 else f"\\${value:.2g}")


def _sampled(sampling: Mapping[str, Any]) -> str:
    """Returns a teacher's sampling as text, field by field; fields left to the server come last."""
    sent, left = [], []
    for key, value in sampling.items():
        if value is None:
            left.append(key)
        elif isinstance(value, Mapping):
            sent += [f"{key}.{name} {json.dumps(one, ensure_ascii=False)}" for name, one in value.items()]
        elif value not in ([], ()) and (key, value) not in _UNSAID:
            sent.append(f"{key} {json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value}")
    said = ", ".join(sent)
    return f"{said}{'; ' if said else ''}left to the server: {', '.join(left)}" if left else said


#: Usual values, which are not shown.
_UNSAID = (("max_tokens_field", "max_tokens"), ("seed_field", "seed"))


def _priced(provenance: Provenance) -> bool:
    return any(teacher.cost is not None for teacher in provenance.teachers)


def _render(template: str, **values: Any) -> str:
    text = _environment().get_template(template).render(**values)
    return f"{_single_blank_lines(text).strip()}\n"


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Returns the template environment, so that templates are compiled once per process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template_folder()),
        autoescape=False,  # it escapes HTML only; `finalize` escapes Markdown and HTML
        finalize=markdown.escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        e=markdown.escape,
        code=markdown.code,
        dollars=_dollars,
        fixed=markdown.fixed,
        known=metadata.is_known,
        sampled=_sampled,
        marker=lambda name: Markup(str(name).replace("--", "- -")),
        repository=markdown.repository_link,
        revision=lambda value: markdown.escape(markdown.short_revision(value)),
    )
    environment.globals.update(policies=[(key, POLICY_LABELS[key]) for key in HELD_OUT_POLICIES], priced=_priced)
    return environment


def _single_blank_lines(text: str) -> str:
    """Collapses the blank lines that omitted parts of a template leave."""
    lines: list[str] = []
    for line in text.split("\n"):
        if line.strip() or (lines and lines[-1].strip()):
            lines.append(line.rstrip())
    return "\n".join(lines)
