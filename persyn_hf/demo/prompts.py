"""Instructions with verifiable constraints, similar to IFEval: a topic with one or two constraints.

The checks are implemented here because the checkers on PyPI (`if-verifiable`, the IFEval task of `lm-eval`) download
NLTK data on import and check for lower case with an unseeded language detector.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

from persyn_hf import columns
from persyn_hf.errors import ScoringError
from persyn_hf.scoring.verifiers import verifier

TOPICS = (
    "the sea",
    "a rainy day",
    "bread",
    "bicycles",
    "the moon",
    "a good friend",
    "coffee",
    "old houses",
    "bees",
    "the desert",
    "music",
    "winter",
    "a small town",
    "trains",
    "gardens",
    "sleep",
    "mountains",
    "a lost key",
    "soup",
    "libraries",
    "clouds",
    "dogs",
    "markets",
    "rivers",
    "painting",
    "the stars",
    "running",
    "tea",
    "islands",
    "letters",
    "bridges",
    "apples",
    "chess",
    "lighthouses",
    "honey",
    "maps",
    "snow",
    "a long walk",
    "clocks",
    "kites",
)
OPENINGS = ("Write about {}.", "Tell me something about {}.", "Describe {}.", "Say what you think of {}.")
WORDS = ("light", "water", "time", "people", "world", "day")

_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_NUMBERED = re.compile(r"^\s*\d+[.)]\s+\S", re.MULTILINE)

Constraint = dict[str, Any]


def demo_prompts(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Generates prompts with checkable constraints.

    Args:
        count (`int`): Number of distinct prompts.
        seed (`int`, defaults to 0): Random seed.

    Returns:
        `list[dict]`: Rows of `prompt` and `answer`, which holds the constraints as JSON, for [`share_met`].

    Example:
        >>> len(demo_prompts(3))
        3
    """
    generator = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < count:
        opening = generator.choice(OPENINGS).format(generator.choice(TOPICS))
        constraints = _draw(generator)
        prompt = " ".join([opening, *(_instruction(constraint) for constraint in constraints)])
        rows.setdefault(prompt, json.dumps(constraints))
    return [{columns.PROMPT: prompt, columns.ANSWER: answer} for prompt, answer in rows.items()]


def _draw(generator: random.Random) -> list[Constraint]:
    shape: Constraint = generator.choice(
        [
            {"kind": "one_sentence"},
            {"kind": "numbered_list", "items": 3},
            {"kind": "at_least_words", "words": 50},
            {"kind": "at_most_words", "words": 20},
            {"kind": "two_paragraphs"},
            {"kind": "json"},
        ]
    )
    wording: Constraint = generator.choice(
        [
            {"kind": "all_lower"},
            {"kind": "no_commas"},
            {"kind": "includes", "word": generator.choice(WORDS)},
            {"kind": "excludes", "word": generator.choice(("the", "and", "is"))},
        ]
    )
    return [shape, wording] if generator.random() < 0.5 else [shape]


def _instruction(constraint: Constraint) -> str:
    texts = {
        "one_sentence": "Answer in exactly one sentence.",
        "numbered_list": "Answer with a numbered list of exactly {items} items.",
        "at_least_words": "Use at least {words} words.",
        "at_most_words": "Use at most {words} words.",
        "two_paragraphs": "Answer in at least two paragraphs with a blank line between them.",
        "json": "Answer with one JSON object and nothing else.",
        "all_lower": "Use lower case letters only.",
        "no_commas": "Do not use any commas.",
        "includes": 'Use the word "{word}".',
        "excludes": 'Do not use the word "{word}".',
    }
    return texts[constraint["kind"]].format(**constraint)


@verifier
def share_met(prompt: str, completion: str, answer: str) -> float:
    """Returns the share of a prompt's constraints that a completion meets. A verifier for `quality`.

    Args:
        prompt (`str`): Unused argument, which verifiers receive.
        completion (`str`): Teacher's answer. An empty answer meets no constraint.
        answer (`str`): Constraints as JSON, from [`demo_prompts`].

    Returns:
        `float`: Share in [0, 1].

    Raises:
        ScoringError: If `answer` holds no known constraints.

    Example:
        >>> share_met("", "Bread is warm.", '[{"kind": "one_sentence"}, {"kind": "all_lower"}]')
        0.5
    """
    try:
        constraints = json.loads(answer)
        met = [meets(constraint, completion) for constraint in constraints]
    except (TypeError, KeyError, ValueError) as error:
        raise ScoringError(f"`answer` must be a JSON list of constraints, got {answer!r:.80} ({error}).") from error
    if not met:
        raise ScoringError("`answer` must name at least one constraint, got an empty list.")
    return sum(met) / len(met)


def meets(constraint: Constraint, completion: str) -> bool:
    """Returns True if a completion meets a constraint."""
    text = completion.strip()
    words = _WORD.findall(text.lower())
    if not words:
        return False
    match constraint["kind"]:
        case "one_sentence":
            return len(_SENTENCE_END.findall(text)) == 1 and "\n" not in text
        case "numbered_list":
            return bool(len(_NUMBERED.findall(text)) == constraint["items"])
        case "at_least_words":
            return bool(len(words) >= constraint["words"])
        case "at_most_words":
            return bool(len(words) <= constraint["words"])
        case "two_paragraphs":
            return len([part for part in re.split(r"\n\s*\n", text) if part.strip()]) >= 2
        case "json":
            return _is_json_object(text)
        case "all_lower":
            return text == text.lower()
        case "no_commas":
            return "," not in text
        case "includes":
            return constraint["word"] in words
        case "excludes":
            return constraint["word"] not in words
        case kind:
            raise ValueError(f"unknown constraint {kind!r}")


def _is_json_object(text: str) -> bool:
    body = text.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        return isinstance(json.loads(body), dict)
    except json.JSONDecodeError:
        return False
