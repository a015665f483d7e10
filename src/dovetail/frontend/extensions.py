"""`dovetail.importer`: importers that users write for ONNX ops, new ones or in the place of this package's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar, cast

from dovetail.core.errors import Error, ModelError, UsageError
from dovetail.frontend.graph_builder import GraphBuilder
from dovetail.frontend.importer import ImportContext
from dovetail.frontend.protos import domain_of
from dovetail.frontend.registry import Context, OnnxNode, Override, add_override, remove_override
from dovetail.frontend.session import Failure
from dovetail.ir.graph import Value

F = TypeVar("F", bound=Callable[[GraphBuilder, OnnxNode], Any])


def importer(op: str, domain: str = "", opset: tuple[int, int | None] | int | None = None) -> _Registration:
    """Import an ONNX op by a function of one's own, wherever models (or `Network.op`) use it.

        @dovetail.importer("Sign")
        def sign(net, node):
            x = node.inputs[0]
            return net.op("Sub", net.op("Cast", net.op("Greater", x, 0.0), to="f32"), net.op("Cast", net.op("Less", x, 0.0), to="f32"))

    The function gets a `GraphBuilder` (`op`, `plugin`, `weight`, `if_`, …, as of `Network`) and the node: `inputs` (values, None
    where absent), `attrs` by name, `outputs`, `opset`, `name`. It returns one value, or a tuple. What it adds counts as a part
    of the node. `net.op` of the same op means what would import it without this function, and `net.unsupported(reason, hint)`
    gives up. The last registration wins, over the op's own import too.

    Args:
        op: op type.
        domain: of the op; "" is ONNX's own.
        opset: versions of the domain, (lowest, highest or None); an int is the lowest. Default: all.

    Returns:
        A decorator, which leaves the function as it was and gives it `remove()`. As `with importer(op).use(function):` the
        registration ends with the block.
    """
    if not isinstance(op, str) or not op:
        raise UsageError(f"importer: got the op {op!r}, expected an op type such as 'Resize'")
    low, high = opset if isinstance(opset, tuple) else (1 if opset is None else opset, None)
    if type(low) is not int or not (high is None or (type(high) is int and high >= low)):
        raise UsageError(f"importer of {op}: got opset {opset!r}, expected (lowest, highest or None)")
    return _Registration(op, domain_of(domain), low, high)


class _Registration:
    """What `importer` returns: a decorator."""

    def __init__(self, op: str, domain: str, low: int, high: int | None) -> None:
        self.op, self.domain, self.low, self.high = op, domain, low, high

    def __call__(self, function: F) -> F:
        """Register a function until its `remove()`."""
        registered = self.use(function)
        try:
            function.remove = registered.remove  # type: ignore[attr-defined]  # functions take attributes
        except (AttributeError, TypeError) as error:
            registered.remove()
            raise UsageError(
                f"importer of {self.op}: got {function!r}, expected a function; others are registered with importer(…).use(…)"
            ) from error
        return function

    def use(self, function: Callable[[GraphBuilder, OnnxNode], Any]) -> Registered:
        """Register a function until the end of a `with` block, or `remove()`."""
        if not callable(function):
            raise UsageError(f"importer of {self.op}: got {function!r}, expected a function (net, node)")
        override = Override(self.op, self.domain, self.low, self.high, _adapted(function))
        add_override(override)
        return Registered(override)


class Registered:
    """A registered importer; a context manager that removes it."""

    def __init__(self, override: Override) -> None:
        self._override = override

    def remove(self) -> None:
        """Take the importer away; doing so twice does no harm."""
        remove_override(self._override)

    def __enter__(self) -> Registered:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _adapted(function: Callable[[GraphBuilder, OnnxNode], Any]) -> Callable[[Context, OnnxNode], Value | Sequence[Value | None]]:
    """A user's function as the importer calls it; its bugs are told from those of the model."""
    title = getattr(function, "__qualname__", repr(function))

    def run(ctx: Context, node: OnnxNode) -> Value | Sequence[Value | None]:
        context = cast(ImportContext, ctx)
        net = GraphBuilder(context, Counter(), node.name)
        try:
            returned = function(net, node)
        except (Error, Failure):
            raise
        except Exception as error:
            raise ModelError(
                f"{node.where}: its importer {title} failed ({type(error).__name__}: {error}); the fault is in that function"
            ) from error
        results = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
        for position, value in enumerate(results):
            if value is not None and not isinstance(value, Value):
                raise ModelError(
                    f"{node.where}: its importer {title} returned {value!r} as output {position}, expected a value; "
                    "arrays become values with net.constant(array)"
                )
        return tuple(None if v is None else context.adopt(v) for v in results)

    return run
