"""Verifiers: functions of `(prompt, completion, answer)` that return a number, higher is better."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from persyn_hf.errors import ConfigError, ScoringError
from persyn_hf.packages import require
from persyn_hf.scoring.json_schema import json_schema_verifier
from persyn_hf.scoring.mathematics import math_verifier
from persyn_hf.scoring.thoughts import require_answer, without_thoughts

Verifier = Callable[[Any, str, Any], float]
_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Set on functions that were made to be verifiers.
_MARK = "__persyn_verifier__"
#: The group of entry points by which an installed package offers verifiers.
_GROUP = "persyn_hf.verifiers"
#: Those that come with this package.
BUILT_IN = ("math", "exact", "reasoning-gym", "json-schema")

#: What decides the scores of the verifiers that come with this package.
_PACKAGES = {"math": "math-verify", "reasoning-gym": "reasoning-gym", "json-schema": "jsonschema"}
#: The source of each module that a verifier was found in, as it is loaded.
_digests: dict[str, str] = {}


def verifier(function: _Function) -> _Function:
    """Marks a function as a verifier, so that a configuration may name it; the function itself is returned.

    A configuration is data, and often somebody else's: without the mark it could name any function of any installed
    package and have every prompt run through it.

    Args:
        function (`Callable`): Called with `(prompt, completion, answer)`, returns a finite number.

    Example:
        >>> @verifier
        ... def is_short(prompt, completion, answer):
        ...     return float(len(completion) < 100)
    """
    setattr(function, _MARK, True)
    return function


def find_verifier(name: str, trust: bool = False) -> Verifier:
    """Finds a verifier.

    Args:
        name (`str`): `"math"`, `"exact"`, `"reasoning-gym"`, `"json-schema"`, the name of an installed package's
            entry point in the group `persyn_hf.verifiers`, or `"package.module:function"` of a function that
            [`verifier`] marks.
        trust (`bool`, defaults to `False`): Take any function (`trust_verifier: true`).

    Returns:
        `Callable`: Called with `(prompt, completion, answer)`.

    Raises:
        ConfigError: If there is no such function, or it was not made to be a verifier.
        MissingExtraError: If the package that a verifier needs is not installed.

    Example:
        >>> find_verifier("exact")("Capital of France?", " Paris\\n", "Paris")
        1.0
    """
    if name == "math":
        require("check mathematical answers", "math-verify")
        return math_verifier
    if name == "exact":
        return exact_verifier
    if name == "reasoning-gym":
        _reasoning_gym()
        return reasoning_gym_verifier
    if name == "json-schema":
        require("check answers against a JSON schema", "jsonschema")
        return json_schema_verifier
    module, colon, function = name.partition(":")
    if not colon:
        return _installed(name)
    try:
        found: Any = _loaded(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"`verifier`: cannot find {name!r}: {error}.") from error
    if not callable(found):
        raise ConfigError(f"`verifier`: {name!r} is no function.")
    if not trust and getattr(found, _MARK, False) is not True and not _is_offered(found):
        raise ConfigError(
            f"`verifier`: {name!r} is not marked as a verifier, so it is not called. If it is yours, put "
            "`@persyn_hf.verifier` above it. If you know what it does with every prompt and answer, set "
            "`trust_verifier: true` beside `verifier`."
        )
    offered: Verifier = found
    return offered


def _installed(name: str) -> Verifier:
    """A verifier that an installed package offers."""
    for point in entry_points(group=_GROUP, name=name):
        try:
            offered: Verifier = point.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"`verifier`: {name!r} is offered as {point.value}, which cannot be loaded: {error}."
            ) from error
        return offered
    raise ConfigError(
        f"`verifier` must be {', '.join(f'`{one}`' for one in BUILT_IN)}, the name of an entry point in the group "
        f"`{_GROUP}`, or `package.module:function`, got {name!r}."
    )


def _is_offered(function: Any) -> bool:
    """Whether an installed package offers the very function."""
    written = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    return any(point.value.replace(" ", "") == written for point in entry_points(group=_GROUP))


def verifier_identity(name: str) -> list[str]:
    """The identity of a verifier: its name, and the version or the source that decides its scores.

    For a function of your own, the source of its module counts; other modules that this one imports do not.

    Args:
        name (`str`): As for [`find_verifier`].

    Raises:
        ConfigError, MissingExtraError: As [`find_verifier`] does.
    """
    package = _PACKAGES.get(name)
    find_verifier(name, trust=True)  # it is not called
    if package is not None:
        return [name, version(package)]
    module, colon, _ = name.partition(":")
    if colon:
        return [name, _digests[module]]
    points = entry_points(group=_GROUP, name=name)
    return [name, "".join(f"{point.value} {point.dist.version if point.dist else ''}" for point in points)]


def _loaded(name: str) -> ModuleType:
    """A module, loaded anew where its source has changed since, as in a notebook beside an open editor."""
    module = importlib.import_module(name)
    file = getattr(module, "__file__", None)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and os.path.isfile(file) else ""
    if _digests.setdefault(name, digest) != digest and module.__spec__ is not None:
        # Python tells an old compiled file by second and size; a quick edit of one digit would go unnoticed.
        Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)
        module = importlib.reload(module)
        _digests[name] = digest
    return module


def exact_verifier(prompt: Any, completion: str, answer: Any) -> float:
    """1 if the completion is the answer, thoughts and the white space around either left out, else 0; case counts."""
    reference = str(require_answer(answer)).strip()
    return float(reference in (completion.strip(), without_thoughts(completion).strip()))


def reasoning_gym_verifier(prompt: Any, completion: str, answer: Any) -> float:
    """What reasoning-gym's own scorer of the task gives, 0 to 1.

    Args:
        prompt (`Any`): Unused.
        completion (`str`): Its answer stands in the last `<answer>…</answer>`, or is the whole text.
        answer (`str` or `Mapping`): The task's entry, as JSON: `json.dumps(dataset[i])`.
    """
    score_answer_fn, extract_answer = _reasoning_gym()
    entry = _entry(require_answer(answer))
    found = extract_answer(completion)
    try:
        score = score_answer_fn(entry["metadata"]["source_dataset"])
    except ValueError as error:
        raise ScoringError(f"reasoning-gym: {error}.") from error
    return float(score(completion.strip() if found is None else found, entry))


def _entry(answer: Any) -> Mapping[str, Any]:
    try:
        entry = json.loads(answer) if isinstance(answer, str) else answer
        named = isinstance(entry, Mapping) and "answer" in entry and "source_dataset" in (entry.get("metadata") or {})
    except json.JSONDecodeError:
        named = False
    if not named:
        raise ScoringError(
            "`reasoning-gym` needs the task's entry in the column `answer`, as JSON with `answer` and "
            f"`metadata.source_dataset` (`json.dumps(dataset[i])`), got {answer!r:.80}."
        )
    found: Mapping[str, Any] = entry
    return found


def _reasoning_gym() -> tuple[Callable[[str], Any], Callable[[str], str | None]]:
    require("check answers to the tasks of reasoning-gym", "reasoning-gym")
    from reasoning_gym import get_score_answer_fn
    from reasoning_gym.utils import extract_answer

    return get_score_answer_fn, extract_answer
