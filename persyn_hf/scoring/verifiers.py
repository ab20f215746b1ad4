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

#: Attribute that marks a function as a verifier.
_MARK = "__persyn_verifier__"
#: Group of entry points through which installed packages offer verifiers.
_GROUP = "persyn_hf.verifiers"
#: Verifiers of this package.
BUILT_IN = ("math", "exact", "reasoning-gym", "json-schema")

#: Packages that decide the scores of the built-in verifiers.
_PACKAGES = {"math": "math-verify", "reasoning-gym": "reasoning-gym", "json-schema": "jsonschema"}
#: Digest of the loaded source of each module that holds a verifier.
_digests: dict[str, str] = {}


def verifier(function: _Function) -> _Function:
    """Marks a function as a verifier, so that a configuration may name it, and returns it unchanged.

    A configuration may come from somebody else. Without the mark, it could name any function of any installed package
    and have it called with every prompt.

    Args:
        function (`Callable`): A function called with `(prompt, completion, answer)` that returns a finite number.

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
            entry point in the group `persyn_hf.verifiers`, or `"package.module:function"` for a function marked with
            [`verifier`].
        trust (`bool`, defaults to `False`): Accept any function (`trust_verifier: true`).

    Returns:
        `Callable`: The verifier, called with `(prompt, completion, answer)`.

    Raises:
        ConfigError: If there is no such function, or it is not marked as a verifier.
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
        raise ConfigError(f"`verifier`: {name!r} is not a function.")
    if not trust and getattr(found, _MARK, False) is not True and not _is_offered(found):
        raise ConfigError(
            f"`verifier`: {name!r} is not marked as a verifier, so it is not called. If it is yours, decorate it with "
            "`@persyn_hf.verifier`. If you trust it with every prompt and answer, set `trust_verifier: true` next to "
            "`verifier`."
        )
    offered: Verifier = found
    return offered


def _installed(name: str) -> Verifier:
    """Loads a verifier that an installed package offers."""
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


def _is_offered(function: object) -> bool:
    """Tells whether an installed package offers exactly this function."""
    written = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    return any(point.value.replace(" ", "") == written for point in entry_points(group=_GROUP))


def verifier_identity(name: str) -> list[str]:
    """The identity of a verifier: its name, and the package version or the source digest that decides its scores.

    For your own function, the digest covers its module's source, not the modules that it imports.

    Args:
        name (`str`): Name as in [`find_verifier`].

    Raises:
        ConfigError, MissingExtraError: As in [`find_verifier`].
    """
    package = _PACKAGES.get(name)
    find_verifier(name, trust=True)  # safe: it is not called
    if package is not None:
        return [name, version(package)]
    module, colon, _ = name.partition(":")
    if colon:
        return [name, _digests[module]]
    points = entry_points(group=_GROUP, name=name)
    return [name, "".join(f"{point.value} {point.dist.version if point.dist else ''}" for point in points)]


def _loaded(name: str) -> ModuleType:
    """Imports a module, and reloads it if its source has changed, as in a notebook next to an open editor."""
    module = importlib.import_module(name)
    file = getattr(module, "__file__", None)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and os.path.isfile(file) else ""
    if _digests.setdefault(name, digest) != digest and module.__spec__ is not None:
        # Python compares compiled files by seconds and size, so it would miss a quick edit of one digit.
        Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)
        module = importlib.reload(module)
        _digests[name] = digest
    return module


def exact_verifier(prompt: object, completion: str, answer: object) -> float:
    """1 if the completion equals the answer, ignoring thoughts and surrounding white space, else 0; case matters."""
    reference = str(require_answer(answer)).strip()
    return float(reference in (completion.strip(), without_thoughts(completion).strip()))


def reasoning_gym_verifier(prompt: object, completion: str, answer: Any) -> float:
    """The score of reasoning-gym's own scorer for the task, 0 to 1.

    Args:
        prompt (`object`): Unused.
        completion (`str`): A completion with its answer in the last `<answer>…</answer>`; without that tag the whole
            text is the answer.
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
