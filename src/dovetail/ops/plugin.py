"""OpSpec of plugin calls."""

from __future__ import annotations

from dovetail.core.dims import Dim, sym
from dovetail.core.dtypes import DType
from dovetail.core.errors import TypeInferenceError
from dovetail.ir.types import TensorType
from dovetail.ops.registry import HOST, op


@op("Plugin", HOST)
def plugin(
    *inputs: TensorType | None,
    name: str,
    results: tuple[tuple[DType, tuple[Dim | None, ...]], ...],
    version: str = "1",
    namespace: str = "",
    attributes: str = "{}",
    digest: str = "",
    symbols: tuple[str, ...] = (),
) -> tuple[TensorType, ...]:
    """A call of the plugin `name`, `version`, `namespace` (`dovetail.plugin`) with `attributes`, a canonical JSON text.

    `results` are the types that were promised when the node was made: element type and extents of each result, None for those
    that the run defines, which `symbols` name in order. A run whose results differ fails. `digest` is that of the function then.
    """
    free = iter(symbols)
    types = tuple(
        TensorType(kind, tuple(sym(next(free, "?")) if d is None else d for d in shape)) for kind, shape in results
    )
    count = sum(d is None for _, shape in results for d in shape)
    if count != len(symbols):
        raise TypeInferenceError(
            f"Plugin {name}: got {len(symbols)} symbols, expected {count}, one for each extent that the run defines"
        )
    return types
