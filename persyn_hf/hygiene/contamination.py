"""Detection of prompts that share an n-gram of words with a benchmark (Brown et al. 2020, arXiv 2005.14165)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from persyn_hf.hygiene.words import ngrams, words

#: Shortest benchmark text, in words, that is searched inside prompts; a shorter one must equal the whole prompt.
_SHORTEST = 6


@dataclass(frozen=True)
class Contamination:
    """The n-grams of one or more benchmarks; small and picklable.

    Args:
        size (`int`): Words per n-gram.
        runs (`Mapping[int, frozenset[int]]`): Number of words → digests of n-grams.
        whole (`frozenset[int]`): Digests of texts too short to be searched inside another.
    """

    size: int
    runs: Mapping[int, frozenset[int]]
    whole: frozenset[int]

    @classmethod
    def of(cls, texts: Iterable[str], size: int = 13) -> Contamination:
        """Reads the texts of benchmarks.

        Args:
            texts (`Iterable[str]`): Questions of the benchmarks.
            size (`int`, defaults to 13): Words per n-gram; 13 is GPT-3's.
        """
        runs: dict[int, set[int]] = {}
        whole: set[int] = set()
        for text in texts:
            found = words(text)
            own = min(size, len(found))
            if own >= min(_SHORTEST, size):
                runs.setdefault(own, set()).update(ngrams(found, own))
            elif found:
                whole.update(ngrams(found, own))
        return cls(size, {length: frozenset(each) for length, each in runs.items()}, frozenset(whole))

    def __bool__(self) -> bool:
        return bool(self.runs or self.whole)

    def holds(self, text: str) -> bool:
        """Tells whether a prompt shares an n-gram with a benchmark.

        Example:
            >>> benchmark = Contamination.of(["How many apples does Ada have after lunch?"], size=5)
            >>> benchmark.holds("Say in one word: how many APPLES does Ada have?")
            True
            >>> benchmark.holds("How many apples are there?")
            False
        """
        found = words(text)
        if found and next(ngrams(found, len(found))) in self.whole:
            return True
        return any(digest in runs for length, runs in self.runs.items() for digest in ngrams(found, length))
