"""Drawn by a machine, or written by a person: what a text's own letters say."""

from __future__ import annotations

import itertools
import re

#: Words of placeholders. Each is so long, or so marked, that a random key has it less than once in ten thousand.
_PLACEHOLDER = re.compile(
    r"example|placeholder|your[-_ ]?|change[-_]?me|insert|replace|redacted|dummy|sample|goes[-_]here|[-_]here\b"
    r"|[-_]key\b|^key[-_]|api[-_]?key|secret[-_]?key|password|x{6,}|\.{3}|\*{3}|0{8}|foobar|lorem|deadbeef|notreal",
    re.IGNORECASE,
)
#: Pairs of letters that make up about three quarters of English, and half and more of German, French or Slovak text.
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
    """Tells a text that a machine drew from words and placeholders.

    Drawn text changes between small letters, capitals and digits in nearly every second place, or its neighbouring
    letters are not those of words.

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
    """The share of places at which small letters, capitals and digits change; a word's capital counts as small."""
    text = re.sub(r"[A-Z](?=[a-z]{3})", lambda match: match.group().lower(), value)
    kinds = re.sub(r"\d", "0", re.sub(r"[A-Z]", "A", re.sub(r"[a-z]", "a", re.sub(r"[^A-Za-z0-9]+", "", text))))
    return sum(left != right for left, right in itertools.pairwise(kinds)) / max(1, len(kinds) - 1)


def looks_drawn(value: str) -> bool:
    """As [`is_random_text`], for values behind a prefix that stands in no word: less is enough."""
    return is_random_text(value) or (not is_placeholder(value) and _changes(value) >= 0.1)


def is_placeholder(value: str) -> bool:
    """Tells a value that the reader is to replace: words, one character repeated, a row of the alphabet."""
    if _PLACEHOLDER.search(value) or len(set(value)) < 2 or re.search(r"(.)\1{5}", value):
        return True
    steps = [ord(right) - ord(left) for left, right in itertools.pairwise(value)]
    return "1" * 6 in "".join("1" if step == 1 else "0" for step in steps)


def _unlike_words(value: str) -> bool:
    pairs = [a + b for run in re.findall(r"[a-z]+", value.lower()) for a, b in itertools.pairwise(run)]
    return len(pairs) >= 14 and sum(pair in _PAIRS for pair in pairs) / len(pairs) < 0.5
