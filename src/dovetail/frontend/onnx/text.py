"""Importers of the string ops."""

from __future__ import annotations

from dovetail.frontend.onnx.shorthand import required
from dovetail.frontend.registry import Context, OnnxNode, onnx_op
from dovetail.ir.graph import Value


@onnx_op("StringSplit")
def string_split(ctx: Context, node: OnnxNode) -> tuple[Value, Value]:
    """The number of pieces is known at run time."""
    pieces, counts = ctx.emit(
        "StringSplit",
        required(ctx, node, 0),
        delimiter=node.attr("delimiter", ""),
        maxsplit=node.attr("maxsplit"),
        symbols=(ctx.fresh("u"),),
    )
    return pieces, counts


@onnx_op("StringNormalizer")
def string_normalizer(ctx: Context, node: OnnxNode) -> Value:
    """The number of strings left is known at run time; the locale does not change Unicode case."""
    result: Value = ctx.emit(
        "StringNormalizer",
        required(ctx, node, 0),
        case_change_action=node.attr("case_change_action", "NONE"),
        is_case_sensitive=bool(node.attr("is_case_sensitive", 0)),
        stopwords=tuple(node.attr("stopwords", ())),
        symbols=(ctx.fresh("u"),),
    )
    return result


@onnx_op("TfIdfVectorizer")
def tf_idf_vectorizer(ctx: Context, node: OnnxNode) -> Value:
    """The pool is one attribute, of strings or of integers."""
    pool = node.attr("pool_strings") or node.attr("pool_int64s") or ()
    names = (
        "mode",
        "min_gram_length",
        "max_gram_length",
        "max_skip_count",
        "ngram_counts",
        "ngram_indexes",
    )
    result: Value = ctx.emit(
        "TfIdfVectorizer",
        required(ctx, node, 0),
        pool=tuple(pool),
        weights=tuple(node.attr("weights", ())),
        **{name: node.attr(name) for name in names},
    )
    return result
