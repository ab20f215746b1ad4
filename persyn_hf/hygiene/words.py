"""The words of a text, for comparison by `duplicates` and `contamination`."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

#: A word: a letter of a script without spaces, a number with its decimals, or a run of letters.
_WORD = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿]|\d+(?:[.,]\d+)*|[^\W\d_぀-ヿ㐀-䶿一-鿿豈-﫿]+")


def words(text: str) -> list[str]:
    """The words and numbers of a text without punctuation, NFKC-normalised and case-folded.

    Example:
        >>> words("What is 3.5 + 2?")
        ['what', 'is', '3.5', '2']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(sequence: Sequence[str], size: int) -> Iterator[int]:
    """Yields 64-bit digests of all n-grams of `size` words; they are the same in every process."""
    for start in range(len(sequence) - size + 1):
        yield _digest(sequence[start : start + size])


def shingles(text: str, size: int) -> set[int]:
    """Digests of a text's n-grams of `size` words. A shorter text is one n-gram; without words, the text itself is."""
    found = words(text)
    if len(found) >= size:
        return set(ngrams(found, size))
    return {_digest(found or [text.strip()])}


def _digest(run: Sequence[str]) -> int:
    return int.from_bytes(hashlib.blake2b("\x1f".join(run).encode("utf-8", "surrogatepass"), digest_size=8).digest())
