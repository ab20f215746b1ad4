"""Dataset, router and student cards, rendered from the templates in `hub_cards/`.

Whatever a template prints is escaped, unless it is `Markup` that our own code made.
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

#: What the templates read of a router's `persyn` block, for routers that do not record it.
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
#: What the student's template reads of a training report.
_REPORT: dict[str, Any] = dict.fromkeys(("student", "student_revision", "settings", "versions"))


@dataclass(frozen=True)
class Figure:
    """A picture in a card.

    Args:
        path (`str`): Relative to the card.
        alt (`str`): Alternative text, for those who do not see the picture.
    """

    path: str
    alt: str


@dataclass(frozen=True)
class Run:
    """One configuration of a dataset card.

    Args:
        name (`str`): The configuration.
        provenance (`Provenance`): Origin of its rows.
        figures (`Mapping[str, Figure]`): `allocation`, `teachers`, `reward`: those that there are.
    """

    name: str
    provenance: Provenance
    figures: Mapping[str, Figure] = field(default_factory=dict)

    @property
    def block(self) -> dict[str, Any]:
        """The router's `persyn` block with every key that the template reads."""
        return _BLOCK | dict(self.provenance.router)

    @property
    def split(self) -> str:
        """The split that the snippet loads."""
        return next(iter(self.provenance.splits), "train")


def template_folder() -> Path:
    """The folder of the templates: inside the package (wheel) or beside it (editable install).

    Raises:
        PublishError: If neither folder is there.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "hub_cards", package.parent / "hub_cards"):
        if (folder / "dataset_card.md.jinja").is_file():
            return folder
    raise PublishError(f"The card templates are missing: neither {package}/hub_cards nor {package.parent}/hub_cards.")


def dataset_body(runs: Sequence[Run], *, location: str, warnings: Sequence[str] = ()) -> str:
    """Renders the body of a dataset card.

    Args:
        runs (`Sequence[Run]`): Its configurations.
        location (`str`): Repository id or folder, as `load_dataset` takes it.
        warnings (`Sequence[str]`): Sentences on licences that do not go together, for the limits.
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
        provenance (`Provenance`): Origin of the rows that it routed.
        location (`str`): Repository id or folder, as `pipeline` takes it.
        dataset_location (`str`, *optional*): The dataset that it built.
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
        report (`Mapping`): Facts of the training, in plain values: `student`, `student_revision`, `seed`, `steps`,
            `loss` (nats/token), `counts`, `settings`, `versions`, and `teachers`: the rows of each. What is absent is
            left out.
        location (`str`): Repository id or folder of the trained student, as `pipeline` takes it.
        dataset_location, dataset_revision, router_location, router_revision (`str`, *optional*): What it stands on.
        results (`Sequence[Mapping]`): Rows of the evaluation: `task`, `metric`, `value`, and `low`, `high`, `baseline`
            where they are known.
        limits (`Sequence[str]`): More sentences for the limits.
        options: Keys of [`Publish`] that are Hub metadata: `license` and `language`.

    Returns:
        `str`: The `README.md`.

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
    """The sampling of a teacher, field by field; fields that are left to the server stand last."""
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


#: Fields that say nothing where they are as usual.
_UNSAID = (("max_tokens_field", "max_tokens"), ("seed_field", "seed"))


def _priced(provenance: Provenance) -> bool:
    return any(teacher.cost is not None for teacher in provenance.teachers)


def _render(template: str, **values: Any) -> str:
    text = _environment().get_template(template).render(**values)
    return f"{_single_blank_lines(text).strip()}\n"


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Templates are compiled once per process."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template_folder()),
        autoescape=False,  # that would be HTML's; `finalize` escapes for Markdown and HTML
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
    """Templates that leave parts out leave blank lines; one is enough, and none stands inside a list or a snippet."""
    lines: list[str] = []
    for line in text.split("\n"):
        if line.strip() or (lines and lines[-1].strip()):
            lines.append(line.rstrip())
    return "\n".join(lines)
