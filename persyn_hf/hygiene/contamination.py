"""Detection of prompts that share an n-gram of words with a benchmark (Brown et al. 2020, arXiv 2005.14165)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from persyn_hf.hygiene.words import ngrams, words

#: Shortest benchmark text, in words, that is searched inside prompts; a shorter one must equal the whole prompt.
_SHORTEST = 6
#: An n-gram in more than this share of a benchmark's texts is its template, not a question, and is ignored.
_TEMPLATE = 0.1


@dataclass(frozen=True)
class Contamination:
    """The n-grams of one or more benchmarks; small and picklable.

    Args:
        size (`int`): Words per n-gram.
        runs (`Mapping[int, frozenset[int]]`): Number of words → digests of n-grams.
        whole (`frozenset[int]`): Digests of the whole texts.
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
        counts: dict[int, Counter[int]] = {}
        whole: set[int] = set()
        for text in texts:
            found = words(text)
            digest = next(ngrams(found, len(found)), None) if found else None
            if digest is None or digest in whole:
                continue
            whole.add(digest)
            own = min(size, len(found))
            if own >= min(_SHORTEST, size):
                counts.setdefault(own, Counter()).update(set(ngrams(found, own)))
        most = max(1.0, _TEMPLATE * len(whole))
        runs = {own: frozenset(run for run, count in each.items() if count <= most) for own, each in counts.items()}
        return cls(size, runs, frozenset(whole))

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
