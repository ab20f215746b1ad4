"""The verifier `math`: compares the final answer of a text with the reference by math-verify."""

from __future__ import annotations

import re
from decimal import Decimal

from persyn_hf.errors import ScoringError
from persyn_hf.scoring.grader import compare_expressions
from persyn_hf.scoring.notation import LONGEST, as_latex, plain_letters
from persyn_hf.scoring.thoughts import require_answer, without_thoughts

_STATED = re.compile(r"^[ \t>*_]*(?:####|(?:#+[ \t]*)?(?:final[ \t]+)?answer[ \t*_]*[:\uff1a])[ \t*_]*", re.I | re.M)
#: Upper case only: `a: 2` lists a variable, and so does `A: 2` beside `B: 3`.
_SHORT = re.compile(r"^[ \t*_]*A[*_]*:[ \t*_]*(?=\S)", re.M)
_OPTION = re.compile(r"^[ \t*_]*B[*_]*:", re.M)
_SAID = re.compile(r"\b(?:answer|result|solution)[ \t]+(?:is|are|equals)\b[ \t]*:?", re.I)
_SENTENCE = re.compile(r"(?:[^.\n]|\.(?=[^\s*]))*")
_BOXED = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])[ \t]*")
_JOINED = re.compile(r"[\s$]*(?:,|;|,?\s*(?:and|or)|,?\s*\\text\s*\{\s*(?:and|or)\s*\})[\s$]*")
#: A line that says what a letter stands for.
_LETTER = re.compile(r"^[^\w\n]*[A-Za-z][ \t]*:.*$", re.M)
_PLAIN = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
#: A name or a few words, for references such as \\text{Evelyn}.
_NAME = re.compile(r"[A-Za-z]+(?: [A-Za-z]+){0,3}")
_BASE = re.compile(r"([0-9A-Za-z]{1,64})_\{?(\d{1,2})\}?")


def math_verifier(prompt: object, completion: str, answer: object) -> float:
    """1 if the completion's final answer equals the reference, else 0 (math-verify).

    The final answer follows the last of `\\boxed{}`, `Answer:`, `####` and "the answer is", and, in a text without a
    box, `A:` in upper case. A text with none of them is given to math-verify whole. Thoughts are ignored.

    Args:
        prompt (`object`): Unused.
        completion (`str`): The answer. One that cannot be parsed within five seconds is wrong.
        answer (`object`): The reference: an expression, plain or as LaTeX, or a solution that states one.

    Raises:
        ScoringError: If the reference cannot be parsed.
        MissingExtraError: If math-verify is not installed.

    Example:
        >>> math_verifier("", "It is $\\\\boxed{7 - 4i}$.", "7 - 4i")
        1.0
    """
    gold = _reference(answer)
    said = _readings(completion)
    number = _number(gold)
    if number is not None and said and _number(said[0]) == number:
        return 1.0
    if _BASE.fullmatch(gold) and said and _BASE.fullmatch(_inside(said[0])):
        return float(_in_base(gold) == _in_base(_inside(said[0])))
    equal = compare_expressions(f"\\boxed{{{gold}}}", said or ["\\boxed{}"])
    if equal is None:
        raise _unreadable(answer)
    return float(equal)


def _reference(answer: object) -> str:
    """The whole reference as LaTeX; it is never reduced to its first number."""
    require_answer(answer)
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise _unreadable(answer)
    text = str(answer)
    marks = _marks(text)
    found = as_latex(_piece(text, marks) if marks else text)
    if found is None:
        raise _unreadable(answer)
    return found


def _unreadable(answer: object) -> ScoringError:
    return ScoringError(
        f"The reference answer {answer!r:.200} is not a mathematical expression that math-verify can parse."
    )


def _readings(completion: str) -> list[str]:
    """The readings of a completion that math-verify gets, the best first."""
    text = without_thoughts(completion)
    marks = _marks(text)
    if not marks:
        tail = plain_letters(text[-LONGEST:])
        return [_LETTER.sub("", tail), tail]
    piece = _piece(text, marks)[:LONGEST]
    found = as_latex(piece)
    in_words = f"answer: {plain_letters(piece)}"
    if found is None:
        return [f"\\boxed{{\\text{{{piece.strip()}}}}}" if _NAME.fullmatch(piece.strip()) else in_words]
    return [f"\\boxed{{{found}}}", in_words]


def _marks(text: str) -> list[tuple[int, int, str]]:
    """The marks that state final answers, as start, end and kind, in the order of the text."""
    boxed = [(found.start(), found.end(), "boxed") for found in _BOXED.finditer(text)]
    marks = [(found.start(), found.end(), "stated") for found in _STATED.finditer(text)]
    if not boxed:
        marks += [(found.start(), found.end(), "said") for found in _SAID.finditer(text)]
        if not _OPTION.search(text):
            marks += [(found.start(), found.end(), "stated") for found in _SHORT.finditer(text)]
    return sorted((*boxed, *marks))


def _piece(text: str, marks: list[tuple[int, int, str]]) -> str:
    """The text after the last mark; several boxes joined by `and`, `or` or a comma are a list."""
    _, end, kind = marks[-1]
    if kind == "said":
        found = _SENTENCE.match(text, end)
        return found[0] if found is not None else ""
    if kind == "stated":
        rest = text[end:].strip()
        closing = {"$$": "$$", "\\[": "\\]"}.get(rest[:2])
        if closing is not None and closing in rest[2:]:
            return rest[2 : rest.index(closing, 2)]
        return rest.partition("\n")[0]
    contents: list[str] = []
    start = len(text)
    for begin, opening, kind in reversed(marks):
        content, after = _braced(text, opening)
        if kind != "boxed" or (contents and not _JOINED.fullmatch(text, after, start)):
            break
        contents.insert(0, content)
        start = begin
    return ", ".join(contents)


def _braced(text: str, start: int) -> tuple[str, int]:
    """The content of the braces that open at `start`, and their end; up to the end of the line if none closes."""
    if not text.startswith("{", start):
        found = re.compile(r"[^\s$]*").match(text, start)
        return (found[0], found.end()) if found is not None else ("", start)
    depth = 0
    for place in range(start, min(len(text), start + LONGEST)):
        if text[place] in "{}" and text[place - 1] != "\\":
            depth += 1 if text[place] == "{" else -1
            if depth == 0:
                return text[start + 1 : place], place + 1
    line = text[start + 1 :].partition("\n")[0]
    return line.rstrip("$ "), start + 1 + len(line)


def _inside(reading: str) -> str:
    return reading.removeprefix("\\boxed{").removesuffix("}").strip()


def _number(reading: str) -> Decimal | None:
    """The value of a plain number, which is compared without math-verify."""
    text = _inside(reading)
    return Decimal(text.replace(",", "")) if len(text) < 100 and _PLAIN.fullmatch(text) else None


def _in_base(text: str) -> int | str:
    """The value of a number with its base, such as `11_2`; the text itself if it has no value in that base."""
    found = _BASE.fullmatch(text)
    try:
        return text if found is None else int(found[1], int(found[2]))
    except ValueError:
        return text
