"""NumPy meaning of the string ops; strings are object arrays of str."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from dovetail.reference.registry import reference
from dovetail.reference.widen import Array


def _texts(x: Array) -> list[str]:
    return [v.decode() if isinstance(v, bytes) else str(v) for v in x.reshape(-1)]


def _strings(texts: Sequence[str], shape: Sequence[int]) -> Array:
    result = np.empty(len(texts), dtype=object)
    result[:] = list(texts)
    return result.reshape(tuple(shape))


@reference("StringConcat")
def string_concat(a: Array, b: Array) -> Array:
    """Element-wise concatenation of strings that broadcast. ONNX StringConcat-20."""
    left, right = np.broadcast_arrays(a, b)
    joined = [p + q for p, q in zip(_texts(left), _texts(right), strict=True)]
    return _strings(joined, left.shape)


@reference("RegexFullMatch")
def regex_full_match(x: Array, *, pattern: str) -> Array:
    """Whether each string matches `pattern` as a whole. ONNX RegexFullMatch-20."""
    compiled = re.compile(pattern)
    found = [compiled.fullmatch(text) is not None for text in _texts(x)]
    return np.array(found, dtype=np.bool_).reshape(x.shape)


@reference("StringSplit")
def string_split(x: Array, *, delimiter: str = "", maxsplit: int | None = None) -> tuple[Array, Array]:
    """The pieces of each string, padded with "" to the longest, and their counts. ONNX StringSplit-20.

    Without a delimiter, runs of white space separate.
    """
    limit = -1 if maxsplit is None else maxsplit
    pieces = [text.split(delimiter or None, limit) for text in _texts(x)]
    longest = max((len(p) for p in pieces), default=0)
    padded = [piece for p in pieces for piece in p + [""] * (longest - len(p))]
    counts = np.array([len(p) for p in pieces], dtype=np.int64).reshape(x.shape)
    return _strings(padded, (*x.shape, longest)), counts


@reference("StringNormalizer")
def string_normalizer(
    x: Array,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: bool = False,
    stopwords: Sequence[str] = (),
) -> Array:
    """Strings [C] or [1, C] without the stop words, in the case asked for. ONNX StringNormalizer-10.

    If nothing is left the result is one empty string.
    """
    if is_case_sensitive:
        stop = set(stopwords)
        kept = [text for text in _texts(x) if text not in stop]
    else:
        stop = {word.lower() for word in stopwords}
        kept = [text for text in _texts(x) if text.lower() not in stop]
    if case_change_action == "LOWER":
        kept = [text.lower() for text in kept]
    elif case_change_action == "UPPER":
        kept = [text.upper() for text in kept]
    kept = kept or [""]
    return _strings(kept, (*x.shape[:-1], len(kept)))


@reference("TfIdfVectorizer")
def tf_idf_vectorizer(
    x: Array,
    *,
    mode: str,
    min_gram_length: int,
    max_gram_length: int,
    max_skip_count: int,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool: Sequence[int | str],
    weights: Sequence[float] = (),
) -> Array:
    """Counts of the pool's n-grams in each row, scaled by `mode` (TF, IDF, TFIDF). ONNX TfIdfVectorizer-9."""
    grams = _pool_grams(pool, ngram_counts)
    rows = x.reshape(1, -1) if x.ndim == 1 else x
    result = np.zeros((rows.shape[0], max(ngram_indexes, default=-1) + 1), np.float32)
    for row, line in enumerate(rows):
        tokens = _texts(line) if line.dtype == object else [int(v) for v in line]
        counts = _count(tokens, min_gram_length, max_gram_length, max_skip_count)
        for number, gram in enumerate(grams):
            if min_gram_length <= len(gram) <= max_gram_length:
                result[row, ngram_indexes[number]] += counts[gram]
    if mode == "IDF":
        result = np.minimum(result, 1)
    if mode in ("IDF", "TFIDF") and len(weights):
        scale = np.zeros(result.shape[1], np.float32)
        scale[np.asarray(ngram_indexes)] = np.asarray(weights, np.float32)
        result = result * scale
    return result[0] if x.ndim == 1 else result


def _pool_grams(pool: Sequence[int | str], starts: Sequence[int]) -> list[tuple[int | str, ...]]:
    grams = []
    for length, start in enumerate(starts, 1):
        end = starts[length] if length < len(starts) else len(pool)
        grams += [tuple(pool[i : i + length]) for i in range(start, end, length)]
    return grams


def _count(
    tokens: Sequence[int | str], shortest: int, longest: int, skips: int
) -> Counter[tuple[int | str, ...]]:
    counts: Counter[tuple[int | str, ...]] = Counter()
    for length in range(shortest, longest + 1):
        # Skips leave no trace in a 1-gram, so it counts once.
        for step in range(1, 2 + (skips if length > 1 else 0)):
            span = (length - 1) * step
            for start in range(len(tokens) - span):
                counts[tuple(tokens[start : start + span + 1 : step])] += 1
    return counts
