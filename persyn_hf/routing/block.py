"""The `persyn` block of a router's `config.json`, verified as plain values before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from persyn_hf.models.files import ModelFiles, is_plain

#: Key of `config.json` that holds the router's own entries.
PERSYN_KEY = "persyn"

_NUMBER = (int, float)
_LINE = "a text of one line"
#: Types of the block's entries that are present and not null.
_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(
        (
            "backbone",
            "backbone_revision",
            "library_version",
            "objective",
            "prompt_column",
            "student",
            "student_revision",
            "tuning",
        ),
        (str, _LINE),
    ),
    **dict.fromkeys(("prompt_format", "prompt_template"), (str, "a text")),
    **dict.fromkeys(("max_length", "seed"), (int, "a whole number")),
    **dict.fromkeys(("scale", "strength"), (_NUMBER, "a number")),
    **dict.fromkeys(("held_out", "left_out", "probe_means", "probe_prompts", "reward"), (Mapping, "an object")),
    "roster": (list, "a list"),
}
_TEACHER_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(("family", "license", "model", "revision"), (str, _LINE)),
    "system_prompt": (str, "a text"),
    "sampling": (Mapping, "an object"),
}
#: Default labels, which transformers leaves out of `config.json`.
_UNNAMED = {"0": "LABEL_0", "1": "LABEL_1"}


def verify_config(files: ModelFiles, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """Verifies a router's `config.json` and returns its `persyn` block and its teachers.

    Args:
        files (`ModelFiles`): The router's files, named in errors.
        config (`Mapping`): Its `config.json`, from `read_config`.

    Raises:
        RouterCheckpointError: If it is not a router's, has an invalid value, or its labels are not its teachers.
    """
    block = config.get(PERSYN_KEY)
    architectures = config.get("architectures") or []
    if not isinstance(block, Mapping):
        raise files.wrong(
            f": `config.json` has no `{PERSYN_KEY}` block, so this is not a persyn router "
            f"(architectures: {_shown(architectures)}, model type: {_shown(config.get('model_type'))})."
        )
    names = architectures if isinstance(architectures, list) else [architectures]
    if not any(isinstance(name, str) and name.endswith("ForSequenceClassification") for name in names):
        raise files.wrong(
            f": `config.json` names the architectures {_shown(architectures)}; a router is a sequence classifier "
            "(`…ForSequenceClassification`)."
        )
    _verify_types(files, block, _TYPES, PERSYN_KEY)
    teachers = _verify_teachers(files, block)
    _verify_labels(files, config, teachers)
    if block.get("fallback") is not None and block["fallback"] not in teachers:
        raise files.wrong(
            f": `{PERSYN_KEY}.fallback` must be one of the teachers {_shown(list(teachers))}, got "
            f"{_shown(block['fallback'])}."
        )
    _verify_numbers(files, block)
    return _finite(block), teachers


def _finite(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON lacks, by `None`; earlier versions wrote NaN intervals for no gap."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    mean = value.get("mean", 0.0)
    if isinstance(mean, float) and not math.isfinite(mean):
        return None
    return {key: _finite(one) for key, one in value.items()}


def names_problem(names: Sequence[str]) -> str | None:
    """Returns the problem with teachers' names as the end of "the teachers' names …", or `None` if there is none.

    The names become labels and are shown on terminals and in cards.
    """
    unclear = [name for name in names if not name.strip() or not is_plain(name)]
    if unclear:
        return f"must be texts without control characters, got {_shown(unclear)}"
    twice = sorted({name for name in names if names.count(name) > 1})
    return f"must be unique, got {_shown(twice)} more than once" if twice else None


def _verify_teachers(files: ModelFiles, block: Mapping[str, Any]) -> tuple[str, ...]:
    described = block.get("teachers")
    if not isinstance(described, list) or not all(
        isinstance(teacher, Mapping) and isinstance(teacher.get("name"), str) for teacher in described
    ):
        raise files.wrong(f": `{PERSYN_KEY}.teachers` in `config.json` must list teachers with names.")
    for place, teacher in enumerate(described):
        _verify_types(files, teacher, _TEACHER_TYPES, f"{PERSYN_KEY}.teachers[{place}]")
    teachers = tuple(teacher["name"] for teacher in described)
    problem = names_problem(teachers)
    if problem is not None:
        raise files.wrong(f": the teachers' names in `{PERSYN_KEY}.teachers` {problem}.")
    return teachers


def _verify_labels(files: ModelFiles, config: Mapping[str, Any], teachers: tuple[str, ...]) -> None:
    labels, numbers = config.get("id2label", _UNNAMED), config.get("label2id", {"LABEL_0": 0, "LABEL_1": 1})
    if labels != {str(place): name for place, name in enumerate(teachers)} or numbers != {
        name: place for place, name in enumerate(teachers)
    }:
        raise files.wrong(
            f": the labels in `config.json` do not match its `{PERSYN_KEY}` block: `id2label` has {_shown(labels)}, "
            f"`label2id` has {_shown(numbers)}, `{PERSYN_KEY}.teachers` has {_shown(list(teachers))}."
        )


def _verify_types(files: ModelFiles, values: Mapping[str, Any], types: Mapping[str, Any], where: str) -> None:
    for key, (kind, named) in types.items():
        value = values.get(key)
        if value is None:
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            raise files.wrong(f": `{where}.{key}` in `config.json` must be {named}, got {_shown(value)}.")
        if named == _LINE and not is_plain(value):  # shown on terminals and in cards
            raise files.wrong(
                f": `{where}.{key}` in `config.json` must not have control characters, got {_shown(value)}."
            )


def _verify_numbers(files: ModelFiles, block: Mapping[str, Any]) -> None:
    length = block.get("max_length")
    if length is not None and length < 1:
        raise files.wrong(f": `{PERSYN_KEY}.max_length` in `config.json` must be at least 1, got {length}.")
    left_out = block.get("left_out") or {}
    if not all(isinstance(gave, str) and is_plain(f"{name}{gave}") for name, gave in left_out.items()):
        raise files.wrong(f": `{PERSYN_KEY}.left_out` in `config.json` must hold texts of one line.")
    for kind, means in (block.get("probe_means") or {}).items():
        if not isinstance(means, Mapping) or not all(isinstance(one, int | float | None) for one in means.values()):
            raise files.wrong(
                f": `{PERSYN_KEY}.probe_means` in `config.json` must hold a number for each teacher, got "
                f"{_shown(means)} for {_shown(kind)}."
            )


def _shown(value: object) -> str:
    """Returns a value as short text without control characters."""
    text = ascii(value) if not is_plain(repr(value)) else repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
