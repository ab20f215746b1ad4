"""Verification of a batch: calls a verifier for every answer and checks its results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from persyn_hf.errors import PersynError, ScoringError
from persyn_hf.scoring.verifiers import Verifier


@dataclass(frozen=True)
class ScorableAnswers:
    """The answers of a batch that can be scored.

    Args:
        prompts, completions, references (`list`): One of each per answer; a reference may be null.
        names (`list[str]`): Names of the answers in errors.
        has_references (`bool`): Whether there is a column of references.
        forms (`list`): The form that each was asked for in: the prompt's `response_format`, or its teacher's schema.
        tools (`list`, *optional*): The functions that each prompt offers.
    """

    prompts: list[Any]
    completions: list[str]
    references: list[Any]
    names: list[str]
    has_references: bool
    forms: list[Any]
    tools: list[Any] | None = None


def verified(verifier: Verifier, known: tuple[float, float] | None, answers: ScorableAnswers) -> list[float]:
    """Calls a verifier for every answer.

    Args:
        verifier (`Callable`): The verifier, called with `(prompt, completion, answer)`.
        known (`tuple[float, float]`, *optional*): The lowest and the highest number that it may return.
        answers (`ScorableAnswers`): The answers.

    Raises:
        ScoringError: If the verifier raises, returns a number that is not finite or outside `known`, or cannot read
            references. The message names the rows, up to 20.
    """
    found = []
    unreadable = []
    for prompt, completion, reference, name in zip(
        answers.prompts, answers.completions, answers.references, answers.names, strict=True
    ):
        try:
            found.append(_number(verifier(prompt, completion, reference), known))
        except ScoringError as error:
            unreadable.append(f"{name}: {_explained(error, reference, answers.has_references)}")
        except PersynError:  # a missing package
            raise
        except Exception as error:
            raise ScoringError(f"{name}: the verifier raised {type(error).__name__}: {error}") from error
    if unreadable:
        more = len(unreadable) - _NAMED
        raise ScoringError(
            (f"{len(unreadable)} rows cannot be verified.\n" if len(unreadable) > 1 else "")
            + "\n".join(unreadable[:_NAMED])
            + (f"\n… and {more} more." if more > 0 else "")
        )
    return found


#: Rows that an error names.
_NAMED = 20


def _number(value: object, known: tuple[float, float] | None) -> float:
    """Checks the number that a verifier returned.

    Raises:
        ScoringError: If it is not a finite number, or is outside the verifier's range.
    """
    try:
        number = float(value) if hasattr(value, "__float__") else math.nan
    except (TypeError, ValueError, RuntimeError, OverflowError):  # an array or a tensor of several numbers
        number = math.nan
    if not math.isfinite(number):
        raise ScoringError(f"the verifier must return a finite number, got {value!r:.200}.")
    if known is not None and not known[0] <= number <= known[1]:
        raise ScoringError(f"the verifier must return a number from {known[0]} to {known[1]} (`range`), got {number}.")
    return number


def _explained(error: ScoringError, reference: object, has_references: bool) -> str:
    if reference is None and has_references and "needs a reference" in str(error):
        return "the verifier needs a reference, but this row's is null."
    return str(error)
