"""Conversion of an expression (plain, Unicode or LaTeX) to LaTeX that math-verify parses whole."""

from __future__ import annotations

import re
import unicodedata
from itertools import accumulate

#: Longest text that is read as one expression, in characters, and its deepest nesting of brackets.
LONGEST = 2000
_DEEPEST = 50

_DELIMITED = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_DELIMITERS = re.compile(r"\\?\$|\\[()\[\]]|\\displaystyle\b")
_EMPHASIS = re.compile(r"\*\*|__|`")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;:! ]|\{,\}|,\\!|~|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_MIXED = re.compile(r"(?<![\w./^{}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w/])")
_SCIENTIFIC = re.compile(r"(?<=\d)[eE]([+-]?\d+)(?!\w)")
_CHOICE = re.compile(r"\(([A-J])\)(?=\s|\\|~|[:.]|$).*|([A-J])[).:](?=\s|\\|~|$).*", re.S)
_TEXT = r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|operatorname|mbox|boldsymbol|bm)\s*\{([^{}]*)\}"
_WRAPPED = re.compile(_TEXT)
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[A-Za-z*]+\}(?:\{[lcr|]*\})?")
_CONNECTION = re.compile(rf"\s*,?\s*(?:{_TEXT.replace('([^{}]*)', '[ ~]*(?:and|or)[ ~]*')}|\b(?:and|or)\b)\s*")
_NUMBER = r"[-+]?\s*(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+|\\[dt]?frac\s*\{?\d+\}?\s*\{?\d+\}?)(?:\s*/\s*\d+)?"
_MEASURED = re.compile(rf"({_NUMBER})\s+[A-Za-z][A-Za-z .-]*")
_UNIT = r"(?:mm|cm|dm|km|in|ft|yd|mi|mg|kg|min|ml|mL|m|g|s|h|L)"
_POWER = r"(?:\^\{?-?\d\}?)"
_IN_UNITS = re.compile(rf"({_NUMBER})\s*(?:{_UNIT}{_POWER}?/{_UNIT}{_POWER}?|(?!in)[a-zA-Z]{{2}}{_POWER})")
_SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_SCALE = re.compile(r"(?<=\d)\s*(thousand|million|billion|trillion)\b", re.I)
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_COMMAND = re.compile(r"\\[A-Za-z]+")
_LETTERS = re.compile(r"[^\W\d_]{2,}")
_FUNCTIONS = (
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "arcsin",
    "arccos",
    "arctan",
    "sinh",
    "cosh",
    "tanh",
    "log",
    "ln",
)
_BARE = re.compile(
    rf"(?<![\\A-Za-z])({'|'.join(sorted((*_FUNCTIONS, 'sqrt', 'pi'), key=len, reverse=True))})(?![A-Za-z])"
)
_ROOT = re.compile(r"\\sqrt\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])))")
_SUPER = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUB = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")

_KNOWN = frozenset((*_FUNCTIONS, "exp", "sqrt", "det", "gcd", "lcm", "min", "max", "mod", "pi", "frac", "cdot"))
_SMALL_WORDS = frozenset(
    [
        "no",
        "is",
        "of",
        "if",
        "to",
        "it",
        "an",
        "at",
        "on",
        "by",
        "in",
        "so",
        "we",
        "me",
        "my",
        "he",
        "us",
        "up",
        "do",
        "go",
        "am",
        "be",
        "as",
    ]
)
_CHARACTERS = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-"),
    **{"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "√": r"\sqrt "},
    **{"≤": r"\leq ", "≥": r"\geq ", "⩽": r"\leq ", "⩾": r"\geq ", "≠": r"\neq ", "±": r"\pm ", "≈": r"\approx "},
    **{"∞": r"\infty ", "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "°": r"^\circ "},
    **{"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "′": "'"},
}
_TRANSLATION = str.maketrans(_CHARACTERS)


def as_latex(text: str) -> str | None:
    """Writes an expression as LaTeX; `None` if it is too long, or holds words and not exactly one expression.

    The unit after a number, dollar signs and a full stop are removed; `and` and `or` make a list.

    Example:
        >>> as_latex("2√5"), as_latex("18 dollars"), as_latex("none of these")
        ('2\\\\sqrt{5}', '18', None)
    """
    if len(text) > LONGEST or _depth(text) > _DEEPEST:
        return None
    text = " ".join(text.split())
    delimited = [next(filter(None, found.groups())) for found in _DELIMITED.finditer(text)]
    latex = _written(_DELIMITERS.sub(" ", text) if delimited else text)
    choice = _CHOICE.fullmatch(_WRAPPED.sub(r"\1", latex).strip())
    if choice is not None:
        return choice[1] or choice[2]
    in_units = _IN_UNITS.fullmatch(latex)
    if in_units is not None:
        return in_units[1]
    if not _has_words(latex):
        return latex or None
    measured = _MEASURED.fullmatch(latex)
    if measured is not None:
        return measured[1]
    return as_latex(delimited[0]) if len(delimited) == 1 and delimited[0] != text else None


def _depth(text: str) -> int:
    """The nesting depth of the brackets."""
    steps = [1 if letter in "([{" else -1 if letter in ")]}" else 0 for letter in text]
    return max(accumulate(steps), default=0)


def plain_letters(text: str) -> str:
    """Replaces Unicode's minus signs, fractions, powers and roots by ASCII and LaTeX."""
    if text.isascii():
        return text
    letters = []
    for letter in text:
        kind = unicodedata.normalize("NFKC", letter) if unicodedata.category(letter) == "No" else ""
        numerator, slash, denominator = kind.partition("\u2044")
        letters.append(rf"\frac{{{numerator}}}{{{denominator}}}" if slash and denominator else letter)
    text = _SUPER.sub(lambda found: f"^{{{_flat(found[0])}}}", "".join(letters))
    text = _SUB.sub(lambda found: f"_{{{_flat(found[0])}}}" if len(found[0]) > 1 else f"_{_flat(found[0])}", text)
    return unicodedata.normalize("NFKC", text.translate(_TRANSLATION))


def _flat(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-")


def _written(text: str) -> str:
    """The expression in LaTeX's own spelling."""
    text = _THOUSANDS.sub("", plain_letters(_EMPHASIS.sub("", text)))
    text = _CONNECTION.sub(", ", _DELIMITERS.sub(" ", text))
    text = _SCIENTIFIC.sub(r" \\cdot 10^{\1}", _MIXED.sub(r"\1\\frac{\2}{\3}", text))
    text = _ROOT.sub(lambda found: rf"\sqrt{{{found[1] or found[2] or ''}}}", _BARE.sub(r"\\\1", text))
    text = _SCALE.sub(lambda found: rf" \cdot 10^{{{_SCALES[found[1].lower()]}}}", text)
    text = text.strip().rstrip(".,;: ").strip()
    text = text.replace(" ", "") if _SPACED.fullmatch(text) else text.replace(r"\varnothing", r"\emptyset")
    left, equals, right = text.rpartition("=")
    if equals and left and left[-1] not in "<>!\\" and not re.search("[A-Za-z]", _COMMAND.sub("", left)):
        return right.strip()  # 3 \cdot 6 = 18
    return text


def _has_words(latex: str) -> bool:
    """Tells whether a text holds prose: a run of letters that is neither a function nor a product of variables."""
    bare = _COMMAND.sub(" ", _WRAPPED.sub(" ", _ENVIRONMENT.sub(" ", latex)))
    return any(_is_word(found.lower()) for found in _LETTERS.findall(bare))


def _is_word(letters: str) -> bool:
    if letters in _KNOWN:
        return False
    if len(letters) == 3:
        return letters not in "abcdefghijklmnopqrstuvwxyz"  # abc and xyz are products
    return len(letters) > 3 or letters in _SMALL_WORDS
