"""Detection of prompts that repeat an earlier one, by their words (MinHash) or by their meaning (semhash)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from persyn_hf.hygiene.words import shingles
from persyn_hf.packages import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Words per run. The runs of "What is 17 + 25?" and "What is 18 + 25?" share none.
_RUN = 3
_PERMUTATIONS, _SEED, _SCHEME = 128, 1, "affine32"


def signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    """MinHash signatures of texts, `(texts, 128)`; each depends only on its text, so shards can be done separately.

    Raises:
        MissingExtraError: If datasketch is not installed.
    """
    require("find near-duplicates", "datasketch")
    import numpy as np
    from datasketch import MinHash

    runs = ([digest & 0xFFFFFFFF for digest in sorted(shingles(text, _RUN))] for text in texts)
    made = MinHash.generator(runs, num_perm=_PERMUTATIONS, seed=_SEED, hashfunc=int, scheme=_SCHEME)
    return np.array([one.hashvalues for one in made], dtype=np.uint32).reshape(len(texts), _PERMUTATIONS)


def near_duplicates(
    texts: Sequence[str], threshold: float, hashes: NDArray[np.uint32] | None = None
) -> dict[int, int]:
    """Finds texts whose sets of word trigrams are similar to those of an earlier text that stays.

    Args:
        texts (`Sequence[str]`): Texts in order; the first of similar ones stays.
        threshold (`float`): Lowest Jaccard similarity of near-duplicates, 0 to 1.
        hashes (`ndarray`, *optional*): Signatures from [`signatures`]; computed by default.

    Returns:
        `dict[int, int]`: Row → earlier row that it repeats.
    """
    require("find near-duplicates", "datasketch")
    from datasketch import LeanMinHash, MinHashLSH

    hashes = signatures(texts) if hashes is None else hashes
    index = MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS) if threshold < 1 else None
    kept: dict[int, set[int]] = {}
    found: dict[int, int] = {}
    same: dict[frozenset[int], int] = {}
    for row, text in enumerate(texts):
        own = shingles(text, _RUN)
        earlier = same.get(frozenset(own))
        if earlier is None and index is not None:
            sketch = LeanMinHash(seed=_SEED, hashvalues=hashes[row], scheme=_SCHEME)
            near = (other for other in sorted(index.query(sketch)) if _jaccard(own, kept[other]) >= threshold)
            earlier = next(near, None)
            if earlier is None:
                index.insert(row, sketch, check_duplication=False)
        if earlier is None:
            kept[row] = own
            same[frozenset(own)] = row
        else:
            found[row] = earlier
    return found


def same_meaning(texts: Sequence[str], threshold: float, encoder: Any) -> dict[int, int]:
    """Finds texts with the meaning of an earlier one, by semhash on the cosine similarity of model2vec embeddings.

    Args:
        texts (`Sequence[str]`): Texts in order; the first of similar ones stays.
        threshold (`float`): Lowest cosine similarity of duplicates.
        encoder (`StaticModel`): Model from [`models.loading.load_static_model`].

    Returns:
        `dict[int, int]`: Row → earlier row that it repeats.

    Raises:
        MissingExtraError: If semhash is not installed.
    """
    require("find prompts of the same meaning", "semhash")
    from semhash import SemHash

    records = [{"row": str(row), "text": text} for row, text in enumerate(texts)]
    result = SemHash.from_records(records, columns=["text"], model=encoder).self_deduplicate(threshold)
    return {int(one.record["row"]): int(one.duplicate_of["row"]) for one in result.filtered}


def _jaccard(left: set[int], right: set[int]) -> float:
    return len(left & right) / len(left | right)
