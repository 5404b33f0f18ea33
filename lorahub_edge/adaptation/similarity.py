"""How alike texts are: TF-IDF cosine over character n-grams, in NumPy. Knows nothing of modules.

N-grams are hashed into a fixed number of buckets, so that long texts and many of them need no vocabulary in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SIZES = (3, 4, 5)
_BITS = 20
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xFF51AFD7ED558CCD)  # odd and without pattern; the second mixes the high bits

Floats = npt.NDArray[np.float64]


def cosine_similarities(query: str, documents: Sequence[str]) -> list[float]:
    """Of the query and each document, from 0 to 1.

    Meaning, with tf how often an n-gram occurs in a text and df in how many of the N documents:

        v[gram] = (1 + log tf) * log((1 + N) / (1 + df));  similarity = v_query . v_document / (|v_query| |v_document|)

    What stands in all documents, such as a template's headings, weighs nothing. Case and runs of blanks do not count.
    A text without any n-gram that tells documents apart is similar to none.
    """
    frequency = np.zeros(1 << _BITS)
    for document in documents:
        frequency[_terms(document)[0]] += 1
    rarity = np.log((1 + len(documents)) / (1 + frequency))
    wanted = np.zeros(1 << _BITS)
    grams, values = _vector(query, rarity)
    wanted[grams] = values
    similarities = []
    for document in documents:  # hashed again: the terms of a thousand long texts would not fit a small memory
        grams, values = _vector(document, rarity)
        similarities.append(float(wanted[grams] @ values))
    return similarities


def _vector(text: str, rarity: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Buckets of a text and their weights, of length 1 or all zero."""
    grams, counts = _terms(text)
    values = (1 + np.log(counts)) * rarity[grams]
    length = np.sqrt(values @ values)
    return grams, values / length if length > 0 else values


def _terms(text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Buckets of all n-grams of a text, and how often each occurs."""
    spaced = f" {' '.join(text.casefold().split())} "
    codes = np.frombuffer(spaced.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    first, second = map(np.uint64, _MULTIPLIERS)
    hashes = []
    for size in _SIZES:
        if len(codes) >= size:
            hashed = np.full(len(codes) - size + 1, size, np.uint64)
            for offset in range(size):
                hashed = hashed * first + codes[offset : offset + len(hashed)]
            hashed ^= hashed >> np.uint64(33)
            hashes.append((hashed * second) >> np.uint64(64 - _BITS))
    grams, counts = np.unique(np.concatenate([np.empty(0, np.uint64), *hashes]), return_counts=True)
    return grams.astype(np.int64), counts
