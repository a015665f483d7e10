"""OpSpecs of the string ops; all of them run on the host."""

from __future__ import annotations

from dovetail.core.dims import sym
from dovetail.core.dtypes import BOOL, F32, I64, STR
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.registry import HOST, broadcast, op


def _check_strings(name: str, *types: TensorType) -> None:
    for t in types:
        if t.dtype != STR:
            raise TypeInferenceError(
                f"{name}: got dtype {t.dtype}, expected str; insert a Cast before it"
            )


@op("StringConcat", HOST)
def string_concat(a: TensorType, b: TensorType) -> TensorType:
    """Element-wise concatenation of strings that broadcast. ONNX StringConcat-20."""
    _check_strings("StringConcat", a, b)
    return TensorType(STR, broadcast(a.shape, b.shape))


@op("RegexFullMatch", HOST)
def regex_full_match(x: TensorType, *, pattern: str) -> TensorType:
    """Whether each string matches `pattern` as a whole. ONNX RegexFullMatch-20."""
    _check_strings("RegexFullMatch", x)
    return TensorType(BOOL, x.shape)


@op("StringSplit", HOST)
def string_split(
    x: TensorType, *, delimiter: str = "", maxsplit: int | None = None, symbols: tuple[str, ...]
) -> tuple[TensorType, TensorType]:
    """The pieces of each string, padded with "" to the longest, and their counts. ONNX StringSplit-20.

    symbols[0] names the largest count.
    """
    _check_strings("StringSplit", x)
    return TensorType(STR, (*x.shape, sym(symbols[0]))), TensorType(I64, x.shape)


@op("StringNormalizer", HOST)
def string_normalizer(
    x: TensorType,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: bool = False,
    stopwords: tuple[str, ...] = (),
    symbols: tuple[str, ...],
) -> TensorType:
    """Strings without the stop words, in the case asked for. ONNX StringNormalizer-10.

    symbols[0] names how many are left.
    """
    _check_strings("StringNormalizer", x)
    if x.rank not in (1, 2):
        raise TypeInferenceError(
            f"StringNormalizer: got an input of rank {x.rank}, expected [C] or [1, C]; reshape it"
        )
    return TensorType(STR, (*x.shape[:-1], sym(symbols[0])))


@op("TfIdfVectorizer", HOST)
def tf_idf_vectorizer(
    x: TensorType,
    *,
    mode: str,
    min_gram_length: int,
    max_gram_length: int,
    max_skip_count: int,
    ngram_counts: tuple[int, ...],
    ngram_indexes: tuple[int, ...],
    pool: tuple[int | str, ...],
    weights: tuple[float, ...] = (),
) -> TensorType:
    """Counts of the pool's n-grams in each row, scaled by `mode`. ONNX TfIdfVectorizer-9."""
    if mode not in ("TF", "IDF", "TFIDF"):
        raise TypeInferenceError(
            f"TfIdfVectorizer: got mode {mode!r}, expected TF, IDF or TFIDF; fix the attribute"
        )
    return TensorType(F32, (*x.shape[:-1], max(ngram_indexes, default=-1) + 1))
