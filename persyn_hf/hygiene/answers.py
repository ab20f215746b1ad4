"""Filters of answers for the published set: refusals, copies of the prompt, and low quality."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from persyn_hf import columns
from persyn_hf.config import Hygiene
from persyn_hf.hygiene.words import ngrams, words

#: Reasons for dropping an answer, in the order of the checks.
REFUSED, COPIED, LOW_QUALITY = "refused", "copied", "low_quality"

_ASSISTANT = r"(?:an?|your)\s+(?:\w+\s+){0,3}(?:ai|language model|assistant|llm|chatbot)\b"
_UNABLE = (
    r"(?:can(?:no|')?t|can\s+not|won't(?:\s+be\s+able\s+to)?|will\s+not(?:\s+be\s+able\s+to)?|do\s+not|don't"
    r"|(?:am|'m)\s+(?:not\s+able|unable|not\s+comfortable|not\s+going)(?:\s+to)?"
    r"|(?:must|have\s+to|will)\s+(?:respectfully\s+|politely\s+)?(?:decline|refuse)(?:\s+to)?)"
)
_ADVERB = r"(?:(?:directly|actually|really|in\s+good\s+conscience|ethically|feel\s+comfortable|be\s+able\s+to)\s+)?"
#: Verbs that refuse without an object; "can't help but" and "can't answer for others" are not refusals.
_HELP = r"(?:help(?!\s+(?:but|it|feeling|being|\w+ing\b))|assist|comply|fulfill?|engage|participate\s+in|support)\b"
#: Verbs that refuse only with an object that a request can be about.
_MAKE = (
    r"(?:provide|create|generate|write|answer|discuss|share|give|complete|continue|offer|respond\s+to|produce|do"
    r"|providing|creating|generating|writing|answering|discussing|sharing|helping|assisting)\s+(?:you\s+(?:with\s+)?)?"
    r"(?:to\s+)?(?:that|this|these|those|such|any|content|instructions|information|advice|material|medical|legal"
    r"|explicit|harmful|illegal|your\s+request|the\s+request|(?:an?\s+|the\s+)?(?:\w+\s+){0,3}"
    r"(?:instructions|information|content|advice|material|request|guide|recipe\s+for))\b"
)
_SORRY = (
    r"(?:(?:i\s*(?:'m|am)\s+)?(?:(?:very|so|truly|really|terribly)\s+)?(?:sorry|afraid)|(?:my\s+)?apologies"
    r"|i\s+apologi[sz]e)"
)
_BEFORE = rf"(?:(?:{_SORRY}|unfortunately|no)\b(?:\W+(?:but|that|however|for\s+any\s+confusion)\b)*\W+)?"
#: Openings of refusals. Only the start of an answer is matched, because an answer may discuss refusals elsewhere.
_REFUSAL = re.compile(
    rf"{_BEFORE}(?:as\s+{_ASSISTANT}[^.!?\n]{{0,60}}?,?\s+)?i\s*{_UNABLE}\s+{_ADVERB}(?:{_HELP}|{_MAKE})"
    rf"|{_SORRY}\b(?:\W+(?:but|that|however)\b)*\W+i\s*(?:{_UNABLE})\s+(?:do\s+(?:that|this)\b|$)"
    r"|i\s+(?:must\s+)?(?:refuse|decline)\s+to\s+(?:\w+\s+)?(?:answer|help|assist|write|provide|create|do|engage)\b"
    r"|this\s+(?:request|content|prompt)\s+(?:violates|goes\s+against)\b"
    r"|(?:对不起|抱歉|很抱歉)[，,\s]*(?:我|作为)[^。\n]{0,20}(?:不能|无法)"
    r"|(?:lo\s+siento|désolée?|je\s+suis\s+désolée?|es\s+tut\s+mir\s+leid|mi\s+dispiace)\W+[^.!?\n]{0,30}?"
    r"(?:no\s+puedo|ne\s+peux\s+pas|kann\s+(?:ich\s+)?(?:dabei\s+|dir\s+|ihnen\s+)?nicht|non\s+posso)",
    re.IGNORECASE,
)
_OPENING = 400
_RUN = 5


def is_refusal(text: str) -> bool:
    """Tells whether an answer starts with a refusal of the request.

    Example:
        >>> is_refusal("I'm sorry, but I can't help with that.")
        True
        >>> is_refusal("A polite refusal is: I'm sorry, but I can't help with that.")
        False
    """
    opening = text[:_OPENING].replace("’", "'").lstrip(' \t\r\n*_#>"“-')
    return _REFUSAL.match(opening) is not None


def copied_share(prompt: str, answer: str) -> float:
    """The share of an answer's 5-grams of words that occur in its prompt, 0 to 1.

    An answer of fewer than five words gives 1 if it equals the prompt, else 0.

    Example:
        >>> copied_share("Name the capital city of France in a word.", "Name the capital city of France in a word.")
        1.0
        >>> copied_share("Name the capital of France.", "Paris")
        0.0
    """
    said = words(answer)
    if not said:
        return 0.0
    size = min(_RUN, len(said))
    asked = words(prompt)
    if size < _RUN:
        return float(said == asked)
    given = set(ngrams(asked, size))
    runs = list(ngrams(said, size))
    return sum(run in given for run in runs) / len(runs)


def reasons(rows: Mapping[str, Sequence[Any]], hygiene: Hygiene) -> list[str | None]:
    """The reason for dropping each answer; `None` for one that stays, and for one that is missing.

    Args:
        rows (`Mapping[str, Sequence]`): A batch with `prompt`, `completion` and, if known, `quality`.
        hygiene (`Hygiene`): Settings of the filters.

    Returns:
        `list[str | None]`: `"refused"`, `"copied"` or `"low_quality"`.
    """
    prompts, completions = rows[columns.PROMPT], rows[columns.COMPLETION]
    qualities = rows.get(columns.QUALITY) or [None] * len(completions)
    return [_reason(*row, hygiene) for row in zip(prompts, completions, qualities, strict=True)]


def _reason(prompt: columns.Prompt, completion: str | None, quality: float | None, hygiene: Hygiene) -> str | None:
    if completion is None:
        return None
    if hygiene.drop_refusals and is_refusal(completion):
        return REFUSED
    if hygiene.max_copied is not None and copied_share(columns.prompt_text(prompt), completion) > hygiene.max_copied:
        return COPIED
    if hygiene.min_quality is not None and (quality is None or quality < hygiene.min_quality):
        return LOW_QUALITY
    return None
