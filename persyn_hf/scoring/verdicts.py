"""Parser for the score in a judge's reply; a reply that could mean more than one number is refused.

The last line with content must be the score alone, in one of these forms. Earlier lines are reasons and are not read,
so the last of several scores counts. Markdown, a full stop and a remark in brackets without digits are ignored.

| form | examples |
|---|---|
| the number | `7`, `7.5`, `[[7]]`, `(7)`, `\\boxed{7}`, `<score>7</score>` |
| with its scale, which must be 10 | `7/10`, `7 out of 10` |
| with a name | `Score: 7`, `**Rating:** 7`, `Final score - 7/10`, `Overall rating is 7.`, `分数：7` |
| JSON | `{"score": 7}`, `{"rating": "7/10", "reason": "…"}`, also in a code block |

A range (`7-8`), two numbers, another scale (`4/5`, `80%`), a sign, a decimal comma (`7,5` may be two numbers) and a
number outside 1 to 10 are not scores.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from persyn_hf.errors import RequestError

#: The lowest and the highest score.
RANGE = (1.0, 10.0)
#: The expected form of a reply, for errors.
EXPECTED = 'the last line must be the score alone, such as `7`, `Score: 7`, `7/10` or `{"score": 7}`'
#: Number of characters read from the end of a reply.
_READ = 20_000
#: Number of opening braces tried in a reply that ends with a JSON object.
_TRIED = 50

_KIND = r"(?:final|overall|total|numeric(?:al)?|quality|average|最终|总体|综合)"
_NAME = (
    r"(?:scores?|ratings?|grade|verdict|evaluation|分数|评分|得分|总分|打分|スコア|評価|点数|점수|평점|bewertung|punktzahl"
    r"|puntuaci[oó]n|puntaje|calificaci[oó]n|nota|note|punteggio|valutazione|оценка|pontua[cç][aã]o)"
)
_LABEL = rf"(?:(?:my|the|your)\s+)?(?:{_KIND}\s*)*{_NAME}(?:\s*\((?:out\s+of\s+10|1\s*[-–]\s*10|/\s*10)\))?"
_SEPARATOR = r"(?:\s*[:=]\s*|\s+[-–—]\s+|\s+(?:is|of)\s*:?\s+|\s+)"
_NUMBER = r"(\d{1,2}(?:\.\d+)?)"
_OPENING, _CLOSING = r"(?:\[\[?|\(|\\boxed\{)?\s*", r"\s*(?:\]\]?|\)|\})?"
_SCALE = r"(?:\s*\(?\s*(?:/|out\s+of|von|sur|sobre|de)\s*10(?:\.0)?\s*\)?)?"
_UNIT = r"(?:\s*(?:points?|pts?|分|点|점|punkte|puntos|punti))?"
_REMARK = r"(?:\s*\([^()\d]*\))?"
_SCORE = re.compile(
    rf"(?:{_LABEL}{_SEPARATOR})?{_OPENING}{_NUMBER}{_CLOSING}{_SCALE}{_UNIT}{_CLOSING}{_REMARK}\s*[.!。]?",
    re.IGNORECASE,
)
#: Marks of Markdown, which judges put anywhere around a score.
_MARKS = re.compile(r"[*_`#>\"'“”]+")
#: Special tokens that leaked at the end of a reply, and signs that are no letters.
_TOKENS = re.compile(r"(?:\s|<\|[a-z_]{2,20}\|>|</s>|<end_of_turn>|<eos>|[\u200b-\u200d\ufe0f\ufeff\u2705\u2b50])+\Z")
#: The score in a tag of its own.
_TAGGED = re.compile(r"<(score|rating|grade)>([^<>]*)</\1>[.]?", re.IGNORECASE)
#: Lines without content: fences, rules, tags.
_EMPTY = re.compile(r"`{3,}\w*|~{3,}\w*|[-*_=]{3,}|</?\w+>")
#: Full-width characters, as typed in Chinese and Japanese.
_WIDE = {0xFF01 + step: 0x21 + step for step in range(94)} | {0x3000: 0x20}
_KEY = re.compile(r"(?:final|overall|total)?(?:score|rating|grade)")


def parse_score(reply: str, clean: Callable[[str], str] = str) -> float:
    """Reads a judge's reply.

    Args:
        reply (`str`): The judge's reply; thoughts before `</think>` are not read.
        clean (callable, *optional*): Function that makes the reply safe to show in an error.

    Raises:
        RequestError: If the last line is not the score alone, or the number is not from 1 to 10. The message quotes
            the reply.

    Example:
        >>> parse_score("Correct, but long.\\nScore: **7**/10.")
        7.0
    """
    text = _TOKENS.sub("", reply[-_READ:].rpartition("</think>")[2]).translate(_WIDE).strip()
    if "<think>" in text:  # the reply ends within its thoughts
        text = ""
    if "<|channel|>" in text:  # gpt-oss's channels, where a server does not read them
        channel, _, said = text.rpartition("<|channel|>")[2].partition("<|message|>")
        text = said if channel.strip() == "final" else ""
    score = _of_json(text) if text.rstrip("`~ \n").endswith("}") else None
    if score is None:
        lines = [line for line in map(str.strip, text.splitlines()) if line and not _EMPTY.fullmatch(line)]
        score = _of_line(lines[-1]) if lines else None
    if score is None or not RANGE[0] <= score <= RANGE[1]:
        raise RequestError(f"the judge's reply is not a score from 1 to 10: {clean(reply)!r}")
    return score


def _of_line(line: str) -> float | None:
    tagged = _TAGGED.fullmatch(line)
    bare = " ".join(_MARKS.sub(" ", tagged[2] if tagged else line.removeprefix("- ")).split())
    match = _SCORE.fullmatch(bare)
    return float(match[1]) if match else None


def _of_json(text: str) -> float | None:
    """The score in the JSON object at the end of a text; `None` if there is no score or more than one."""
    text = text.rstrip("`~ \n")
    for start, _ in zip(_openings(text), range(_TRIED), strict=False):
        try:
            found = json.loads(text[start:])
        except (ValueError, RecursionError):
            continue
        values = {_of_value(value) for key, value in found.items() if _names_a_score(key)}
        return values.pop() if len(values) == 1 else None
    return None


def _openings(text: str) -> Iterator[int]:
    """Positions at which an object may begin: the first brace of each line."""
    return (match.end() - 1 for match in re.finditer(r"^[^{}\n]*\{", text, re.MULTILINE))


def _names_a_score(key: str) -> bool:
    return _KEY.fullmatch(re.sub(r"[\W_]+", "", key).lower()) is not None


def _of_value(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    return _of_line(value.strip()) if isinstance(value, str) else float(value) if abs(value) < 100 else None
