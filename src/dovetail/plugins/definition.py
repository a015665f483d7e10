"""What a plugin is: one Python function with its attributes, a shape rule, and bodies for devices."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from dovetail.core.dtypes import DType, dtype
from dovetail.core.errors import Error, ExecutionError, TypeInferenceError, UsageError
from dovetail.plugins import attributes as texts
from dovetail.plugins.digests import digest_of

Array = np.ndarray[Any, Any]
F = TypeVar("F", bound=Callable[..., Any])
Configs = Sequence[Mapping[str, int | str]] | Callable[..., Sequence[Mapping[str, int | str]]]

Promise = tuple[tuple[DType, tuple[int | None, ...]], ...]
"""Element type and extents of each result; None for an extent that the data decide."""

_NO_DEFAULT: Any = inspect.Parameter.empty


@dataclass(frozen=True)
class Body:
    """A kernel body: what prints its source for one call and configuration, and the configurations to try, best first."""

    function: Callable[..., Any]
    configs: Configs


@dataclass(frozen=True)
class Key:
    """What a plugin is asked for by."""

    namespace: str
    name: str
    version: str

    def __str__(self) -> str:
        where = f"{self.namespace}::" if self.namespace else ""
        return f"{where}{self.name} (version {self.version})"


@dataclass(eq=False)
class Plugin:
    """A plugin: call it like the function it was made from.

    Attributes:
        key: namespace, name and version.
        reference: the function: its meaning, its CPU path, and what kernels are checked against.
        inputs: names of the array parameters.
        required: how many of them (from the first) must be given.
        variadic: the name of `*arrays`, if there is one.
        defaults: attribute names with their defaults (`inspect.Parameter.empty` where there is none).
        open: whether it takes any attribute (`**attributes`).
        tolerance: relative L2 error that its kernels may have; None = what kernels may have in general.
        shape_rule, bodies, gpu_function: what `shape`, `c` and `triton`, and `gpu` have added; bodies by device ("cpu", "cuda").
        module: where it was defined, as one would import it; "" where that is no module.
    """

    key: Key
    reference: Callable[..., Any]
    inputs: tuple[str, ...]
    required: int
    variadic: str | None
    defaults: Mapping[str, Any]
    annotations: Mapping[str, Any]
    open: bool
    tolerance: float | None
    module: str
    shape_rule: Callable[..., Any] | None = None
    bodies: dict[str, Body] = field(default_factory=dict)
    gpu_function: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        self.__doc__ = inspect.getdoc(self.reference)
        self.__name__ = getattr(self.reference, "__name__", self.key.name)

    def __call__(self, *arrays: Any, **attributes: Any) -> Any:
        """The reference, called directly."""
        return self.reference(*arrays, **attributes)

    def __repr__(self) -> str:
        return f"<plugin {self.key}>"

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the reference's source text, with what it calls in its module; helpers may be defined after it."""
        return digest_of(self.reference)

    @property
    def fingerprint(self) -> str:
        """A hash of all its functions' source text: what kernels and types are made from."""
        rule = "" if self.shape_rule is None else digest_of(self.shape_rule)
        bodies = []
        for device, body in sorted(self.bodies.items()):
            configs = digest_of(body.configs) if callable(body.configs) else repr(body.configs)
            bodies.append(f"{device} {digest_of(body.function)} {configs}")
        if self.gpu_function is not None:
            bodies.append(f"gpu {digest_of(self.gpu_function)}")
        return hashlib.sha256("\n".join([str(self.key), self.digest, rule, *bodies]).encode()).hexdigest()[:16]

    # ------------------------------------------------------------------ decorators
    def shape(self, function: F) -> F:
        """Add the shape rule: `(*types, **attributes)` to the results' types.

        It gets one `TensorType` per input (`.shape` of ints and symbolic dims, `.dtype`; None where the input is absent) and
        returns per result a type (`x.with_shape(…)`), a pair (shape, dtype), or a shape, which has the first input's dtype. A
        list or a tuple of those stands for several results. A dim is an int, an expression over dims, or None where only the
        data tell.
        """
        self.shape_rule = function
        return function

    def c(self, configs: Configs = ({},)) -> Callable[[F], F]:
        """Add the C body for CPUs: `(call, **config)` to C text or a `CKernel`; see `kernels.plugin_call.PluginCall`.

        Args:
            configs: the configurations that the tuner tries, the best guess first; or a function of the call that gives them.
        """
        return self._body("cpu", configs)

    def triton(self, configs: Configs = ({},)) -> Callable[[F], F]:
        """Add the Triton body for GPUs: `(call, **config)` to a `TritonKernel`; `configs` as of `c`."""
        return self._body("cuda", configs)

    def gpu(self, function: F) -> F:
        """Add the function that runs on arrays on a GPU: `(*inputs, out, stream, **attributes)`, for what no Triton body takes.

        Inputs and `out` (one array per result, to be filled) are on the device and may be read by any package through DLPack or
        `__cuda_array_interface__`; absent inputs are None. All work belongs into `stream`, the handle of a CUDA stream, and the
        function returns without waiting for it: None, or NotImplemented where the host is to do it.
        """
        self.gpu_function = function
        return function

    def _body(self, device: str, configs: Configs) -> Callable[[F], F]:
        if callable(configs) and not isinstance(configs, Sequence):
            listed: Configs = configs
        else:
            listed = tuple(dict(c) for c in configs)
            if not listed:
                raise UsageError(f"plugin {self.key}: got no configuration for its {device} body, expected at least one, such as {{}}")

        def add(function: F) -> F:
            self.bodies[device] = Body(function, listed)
            return function

        return add

    # ------------------------------------------------------------------ attributes
    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes with defaults filled in, as the reference gets them.

        Raises:
            TypeInferenceError: unknown, missing or of a type that the signature rules out.
        """
        unknown = [name for name in given if name not in self.defaults]
        if unknown and not self.open:
            known = ", ".join(self.defaults) or "none"
            raise TypeInferenceError(
                f"plugin {self.key}: got the unknown attribute {unknown[0]!r}, expected one of: {known}; remove it or fix its spelling"
            )
        missing = [name for name, default in self.defaults.items() if default is _NO_DEFAULT and name not in given]
        if missing:
            raise TypeInferenceError(
                f"plugin {self.key}: got no value for the attribute {missing[0]!r}, got {sorted(given)}, expected every attribute "
                "without a default; give it"
            )
        named = {name: given.get(name, default) for name, default in self.defaults.items()}
        named |= {name: given[name] for name in unknown}
        try:
            return {name: self._fitting(name, texts.plain(value)) for name, value in named.items()}
        except UsageError as error:
            raise TypeInferenceError(f"plugin {self.key}: {error}") from error

    def _fitting(self, name: str, value: Any) -> Any:
        """A value as its annotation wants it: ONNX has no bools, and writes whole floats as ints."""
        wanted = self.annotations.get(name)
        if wanted in (bool, "bool") and type(value) is int and value in (0, 1):
            return bool(value)
        if wanted in (float, "float") and type(value) is int:
            return float(value)
        known = {int: (int,), float: (float,), bool: (bool,), str: (str,)}
        known |= {kind.__name__: types for kind, types in known.items()}  # type: ignore[misc]  # annotations may be text
        if wanted in known and type(value) not in known[wanted]:
            raise UsageError(
                f"attribute {name!r}: got {value!r}, expected {wanted if isinstance(wanted, str) else wanted.__name__}; convert it"
            )
        return value

    def check_inputs(self, count: int, absent: Sequence[int] = ()) -> None:
        """Refuse a number of inputs that the signature does not take.

        Raises:
            TypeInferenceError: too many, or one that is needed is absent.
        """
        if count > len(self.inputs) and self.variadic is None:
            raise TypeInferenceError(
                f"plugin {self.key}: got {count} inputs, expected at most {len(self.inputs)} ({', '.join(self.inputs)}); remove the rest"
            )
        for position in range(self.required):
            if position >= count or position in absent:
                raise TypeInferenceError(
                    f"plugin {self.key}: got no input {position} ({self.inputs[position]}), expected at least {self.required}; connect it"
                )

    # ------------------------------------------------------------------ running
    def run(self, arrays: Sequence[Array | None], given: Mapping[str, Any]) -> tuple[Array, ...]:
        """Call the reference on read-only arrays and return its results as arrays.

        Raises:
            ExecutionError: it failed, or returned something that is no array.
        """
        views = [None if a is None else _read_only(a) for a in arrays]
        try:
            found = self.reference(*views, **given)
        except Error:
            raise
        except Exception as error:
            raise ExecutionError(
                f"plugin {self.key} failed ({type(error).__name__}: {error}); the fault is in the plugin's function, or in its inputs"
            ) from error
        results = tuple(found) if isinstance(found, tuple | list) else (found,)
        return tuple(self._result(i, r) for i, r in enumerate(results))

    def _result(self, index: int, result: Any) -> Array:
        try:
            array = np.asarray(result)
            kind = dtype(array.dtype)
        except (UsageError, ValueError, TypeError) as error:
            raise ExecutionError(f"plugin {self.key}: result {index} is a {type(result).__name__} ({error}); return arrays") from error
        if kind.kind == "string" and array.dtype != object:
            return array.astype(object)
        if array.dtype == object and not all(isinstance(item, str) for item in array.reshape(-1)):
            raise ExecutionError(
                f"plugin {self.key}: got {type(result).__name__} as result {index}, expected an array; return one, or a tuple of several"
            )
        return array.astype(kind.numpy, copy=False)

    def check_promise(self, results: Sequence[Array], promised: Promise) -> None:
        """Compare results with the types that the graph was built with.

        Raises:
            ExecutionError: they differ; names the plugin, the result and the axis.
        """
        if len(results) != len(promised):
            raise ExecutionError(
                f"plugin {self.key}: got {len(results)} results, expected the {len(promised)} that it had when the model was "
                f"imported; {self._remedy()}"
            )
        for index, (array, (kind, shape)) in enumerate(zip(results, promised, strict=True)):
            fits = array.ndim == len(shape) and all(d in (None, n) for d, n in zip(shape, array.shape, strict=True))
            if fits and dtype(array.dtype) == kind:
                continue
            wanted = ", ".join("any" if d is None else str(d) for d in shape)
            raise ExecutionError(
                f"plugin {self.key}: got {dtype(array.dtype)}[{', '.join(map(str, array.shape))}] as result {index}, "
                f"expected {kind}[{wanted}]; {self._remedy()}"
            )

    def _remedy(self) -> str:
        if self.shape_rule is None:
            return "what trial runs showed when the model was imported does not hold; give it a shape rule (@….shape)"
        return "its shape rule says otherwise; correct one of the two"


def define(
    function: Callable[..., Any], name: str, version: str, namespace: str, tolerance: float | None
) -> Plugin:
    """The plugin of a function; the signature tells its inputs and attributes.

    Raises:
        UsageError: a name, version or tolerance that cannot be, or a function without a readable signature.
    """
    key = Key(namespace, name, version)
    for what, text in (("name", name), ("version", version), ("namespace", namespace)):
        if not isinstance(text, str) or (what != "namespace" and not text):
            raise UsageError(f"plugin: got {text!r} as {what}, expected text")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise UsageError(f"plugin {key}: got the tolerance {tolerance!r}, expected a relative error from 0 to 1")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise UsageError(f"plugin {key}: got {function!r}, expected a Python function with a signature ({error})") from error
    inputs: list[str] = []
    defaults: dict[str, Any] = {}
    annotations: dict[str, Any] = {}
    required, variadic, takes_any = 0, None, False
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            variadic = parameter.name
        elif parameter.kind is parameter.VAR_KEYWORD:
            takes_any = True
        elif parameter.kind is parameter.KEYWORD_ONLY:
            defaults[parameter.name] = parameter.default
            annotations[parameter.name] = parameter.annotation
        else:
            inputs.append(parameter.name)
            if parameter.default is _NO_DEFAULT:
                required = len(inputs)
            elif parameter.default is not None:
                raise UsageError(
                    f"plugin {key}: got the default {parameter.default!r} for {parameter.name!r}, expected None for an optional "
                    "input; attributes stand behind a * in the signature"
                )
    module = getattr(function, "__module__", "") or ""
    return Plugin(
        key, function, tuple(inputs), required, variadic, defaults, annotations, takes_any, tolerance,
        "" if module == "__main__" else module,
    )  # fmt: skip


def _read_only(array: Array) -> Array:
    view = array.view()
    view.flags.writeable = False
    return view
