"""Texts that are nearly the same: pairs by the Jaccard similarity of their word shingles, found through MinHash bands.

A shingle is a run of WORDS words, case and punctuation aside; each Han character or kana counts as a word. Of two texts
with the shingles A and B the similarity is |A ∩ B| / |A ∪ B|. Shingles of more than a share COMMON of the texts, such
as a system message's, are left out before.
Broder, On the resemblance and containment of documents, 1997; banding as in Leskovec, Rajaraman, Ullman, Mining of
Massive Datasets, chapter 3.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

WORDS = 3
"""Words of a shingle."""
SIMILAR = 0.7
"""Similarity from which two texts are called nearly the same."""
FEWEST = 6
"""Shingles that a text needs to be compared: of fewer, one word changes most."""
COMMON, RARE = 0.05, 10
"""A shingle is common in more than this share of the texts, and in more than so many of them."""
BANDS, DEPTH = 24, 4
"""Two texts of similarity s meet in a band with probability 1 − (1 − s^DEPTH)^BANDS: 0.998 at 0.7, 0.18 at 0.3."""
NEIGHBOURS = 16
"""Texts before it in a band that a text is compared with, the latest ones: so time is linear in the texts."""
Shingles = frozenset[int]
_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def near_duplicates(texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """(index, later index, similarity) of pairs whose similarity is at least SIMILAR, each once, in order.

    The similarity is exact. A pair is missed with a probability of at most 0.2 %, or where more than NEIGHBOURS texts
    of one band stand between.
    """
    sets = _rare_shingles(texts)
    compared = [index for index, held in enumerate(sets) if len(held) >= FEWEST]
    for first, second in sorted(_candidates(sets, compared)):
        similarity = _jaccard(sets[first], sets[second])
        if similarity >= SIMILAR:
            yield first, second, similarity


def _jaccard(a: Shingles, b: Shingles) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _rare_shingles(texts: Sequence[str]) -> list[Shingles]:
    sets = [_shingles(text) for text in texts]
    counts = Counter(shingle for held in sets for shingle in held)
    limit = max(RARE, COMMON * len(texts))
    common = {shingle for shingle, count in counts.items() if count > limit}
    return [held - common for held in sets]


def _shingles(text: str) -> Shingles:
    """Each as a number below 2³², the same in every process."""
    words = _WORD.findall(text.casefold())
    runs = (" ".join(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1))
    return frozenset(int.from_bytes(hashlib.blake2b(run.encode(), digest_size=4).digest()) for run in runs)


def _candidates(sets: Sequence[Shingles], compared: Sequence[int]) -> set[tuple[int, int]]:
    """Pairs that share a band of their MinHash signatures."""
    pairs = set()
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    permutations = _permutations()
    for index in compared:
        signature = _signature(sets[index], permutations)
        for band in range(BANDS):
            bucket = buckets[band, signature[band * DEPTH : (band + 1) * DEPTH].tobytes()]
            pairs |= {(other, index) for other in bucket[-NEIGHBOURS:]}
            bucket.append(index)
    return pairs


def _permutations() -> npt.NDArray[np.uint64]:
    """Odd factors and summands [2, BANDS·DEPTH] of x → (a·x + b) mod 2⁶⁴, whose upper half is a hash of x."""
    drawn = np.random.default_rng(0).integers(1 << 63, size=(2, BANDS * DEPTH), dtype=np.uint64)
    return drawn * np.uint64(2) + np.uint64(1)


def _signature(shingles: Shingles, permutations: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """The smallest hash of a set under each permutation [BANDS·DEPTH]."""
    values = np.fromiter(shingles, dtype=np.uint64, count=len(shingles))[:, None]
    factors, summands = permutations
    return ((values * factors + summands) >> np.uint64(32)).min(axis=0).astype(np.uint32)
