"""The words of a text, as duplicates and contamination compare them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

#: A letter of a script without spaces is a word of its own; so is a number with its decimals.
_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿]|\d+(?:[.,]\d+)*|[^\W\d_぀-ヿ㐀-䶿一-鿿豈-﫿]+")


def words(text: str) -> list[str]:
    """The words and numbers of a text, folded: no case, no accents of compatibility, no punctuation.

    Example:
        >>> words("What is 3.5 + 2?")
        ['what', 'is', '3.5', '2']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(sequence: Sequence[str], size: int) -> Iterator[int]:
    """64-bit digests of all runs of `size` words; they are the same in every process."""
    for start in range(len(sequence) - size + 1):
        yield _digest(sequence[start : start + size])


def shingles(text: str, size: int) -> set[int]:
    """Digests of a text's runs of `size` words. A shorter text is one run; one without words stands for itself."""
    found = words(text)
    if len(found) >= size:
        return set(ngrams(found, size))
    return {_digest(found or [text.strip()])}


def _digest(run: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b("\x1f".join(run).encode("utf-8", "surrogatepass"), digest_size=8).digest())
