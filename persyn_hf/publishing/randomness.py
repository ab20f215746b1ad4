"""Detection of random text: keys differ from words and placeholders in their letters."""

from __future__ import annotations

import itertools
import re

#: Words of placeholders; a random key contains one of them by chance less than once in ten thousand.
_PLACEHOLDER = re.compile(
    r"example|placeholder|your[-_ ]?|change[-_]?me|insert|replace|redacted|dummy|sample|goes[-_]here|[-_]here\b"
    r"|[-_]key\b|^key[-_]|api[-_]?key|secret[-_]?key|password|x{6,}|\.{3}|\*{3}|0{8}|foobar|lorem|deadbeef|notreal",
    re.IGNORECASE,
)
#: Letter pairs that make up about three quarters of English, and at least half of German, French or Slovak text.
_PAIRS = frozenset(
    re.findall(
        "..",
        "thheineranreonatenndtiesorteofedisitalarsttontngsehaasouiolevecomedehiriroicneearacelichllbemasiomurcael"
        "talansdifohopeecprnoctusacotiltrlyncetutsssorsunlowageiewheewiemadolrtpowenaulnitsmoowpaimmiaishirsuidos"
        "iviaamficivipligtuevldrympfeblabghtyopwosaayexkefrooavagifapgrodbosprddoucbueiovbyrmepttocfaefcurnscgida"
        "yocrcldugaquueffbaeylsvaumppuauplugohtruugdsltpircrregauckewmubrbiptakpuuirgibtlnykirkysobmmfuphogmsyeud"
        "mbipuboirlgudrhrcctwftwnnuafhunneovorvnfslskkyovnkdyzizasztzgldljekukr",
    )
)


def is_random_text(value: str) -> bool:
    """Returns true for random text, false for words and placeholders.

    Random text switches often between lower case, upper case and digits, or its letter pairs are rare in words.

    Example:
        >>> is_random_text("learn-is-a-machine-learning-library"), is_random_text("9fQ2xLw8Zr41TnbV7cKd")
        (False, True)
    """
    if is_placeholder(value):
        return False
    if len(value) >= 24 and len(set(value)) > 6 and re.fullmatch(r"[0-9a-f-]*[a-f][0-9a-f-]*", value):
        return True
    parts = [part for part in re.split(r"[^A-Za-z0-9]+", value) if len(part) >= 12]
    return max(map(_changes, [value, *parts])) >= 0.22 or _unlike_words(value)


def _changes(value: str) -> float:
    """Returns the share of places that switch between lower case, upper case and digits; capitalised words do not."""
    text = re.sub(r"[A-Z](?=[a-z]{3})", lambda match: match.group().lower(), value)
    kinds = re.sub(r"\d", "0", re.sub(r"[A-Z]", "A", re.sub(r"[a-z]", "a", re.sub(r"[^A-Za-z0-9]+", "", text))))
    return sum(left != right for left, right in itertools.pairwise(kinds)) / max(1, len(kinds) - 1)


def looks_drawn(value: str) -> bool:
    """Applies a lower threshold than [`is_random_text`], for values after a prefix that no word contains."""
    return is_random_text(value) or (not is_placeholder(value) and _changes(value) >= 0.1)


def is_placeholder(value: str) -> bool:
    """Returns true for a value that the reader should replace: words, repeated characters, alphabetical sequences."""
    if _PLACEHOLDER.search(value) or len(set(value)) < 2 or re.search(r"(.)\1{5}", value):
        return True
    steps = [ord(right) - ord(left) for left, right in itertools.pairwise(value)]
    return "1" * 6 in "".join("1" if step == 1 else "0" for step in steps)


def _unlike_words(value: str) -> bool:
    pairs = [a + b for run in re.findall(r"[a-z]+", value.lower()) for a, b in itertools.pairwise(run)]
    return len(pairs) >= 14 and sum(pair in _PAIRS for pair in pairs) / len(pairs) < 0.5
