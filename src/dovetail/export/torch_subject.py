"""What is exported from PyTorch: a module or program, its example arguments by name, and its weights by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dovetail.core.errors import ExportError, UsageError
from dovetail.core.optional import require

WHOLE = "the module"
"""What stands for the name of a module itself, which has none among its parts."""

_WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
_HOW = "pass them as args=(x, …), or on the command line with --input NAME:f32[1,3,224,224] or --inputs X.npz"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def is_torch_model(value: object) -> bool:
    """Whether a value is an nn.Module or an ExportedProgram, told without importing torch."""
    return any(
        kind.__module__.startswith("torch.") and kind.__name__ in ("Module", "ExportedProgram") for kind in type(value).__mro__
    )


@dataclass
class Subject:
    """A model of PyTorch, ready to be exported.

    Attributes:
        module: what is called for results.
        program: the ExportedProgram that it came as, or None.
        args, kwargs: example arguments, as many in order as can be.
        structure: the same by parameter of `forward`.
        leaves: every tensor in them by the name of its ONNX input.
        weights: parameters and buffers by name.
        name: of its class.
        notes: what was done to get here.
    """

    module: Any
    program: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    structure: dict[str, Any]
    leaves: dict[str, Any]
    weights: dict[str, Any]
    name: str
    notes: list[str] = field(default_factory=list)

    def run(self, leaves: Mapping[str, Any] | None = None) -> Any:
        """Call the module on its example arguments, with other tensors in them where some are given."""
        torch = require("torch", "torch", "exporting from PyTorch")
        args, kwargs = self.args, self.kwargs
        if leaves is not None:
            args, kwargs = self.with_leaves(leaves)
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def with_leaves(self, leaves: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The example arguments with other tensors of the same names in them."""
        found = iter([leaves[name] for name in self.leaves])
        args, kwargs = _tree().tree_map(lambda x: next(found) if _is_tensor(x) else x, (self.args, self.kwargs))
        return args, kwargs

    def map_structure(self, function: Any) -> dict[str, Any]:
        """The example arguments by parameter, with function(name) in place of each tensor and None of all else."""
        names = iter(self.leaves)
        result: dict[str, Any] = _tree().tree_map(lambda x: function(next(names)) if _is_tensor(x) else None, self.structure)
        return result


def subject(model: Any, args: Any, kwargs: Mapping[str, Any] | None) -> Subject:
    """A subject from what the user gave.

    Args:
        model: nn.Module or ExportedProgram; what torch.compile and DataParallel make of a module is taken apart.
        args: example arguments: a tuple, or a single tensor; None of a program, which has its own.
        kwargs: example arguments by name.

    Raises:
        UsageError: no module; arguments that `forward` does not take.
    """
    torch = require("torch", "torch", "exporting from PyTorch")
    notes, program = [], None
    if isinstance(model, torch.export.ExportedProgram):
        program, module = model, model.module()
        if args is None and not kwargs:
            args, kwargs = model.example_inputs or ((), {})
        name, weights = "ExportedProgram", dict(model.state_dict) | {k: v for k, v in model.constants.items() if _is_tensor(v)}
    else:
        module = model
        while type(module).__name__ in _WRAPPERS:
            notes.append(f"the module inside {type(module).__name__} was exported")
            module = getattr(module, _WRAPPERS[type(module).__name__])
        if not isinstance(module, torch.nn.Module):
            raise UsageError(f"export: got a {type(model).__name__}, expected a torch.nn.Module or a torch.export.ExportedProgram")
        name, weights = type(module).__name__, {**dict(module.named_parameters(remove_duplicate=False)),
                                                **dict(module.named_buffers(remove_duplicate=False))}  # fmt: skip
    if args is None and not kwargs:
        raise UsageError(f"{name}: got no example inputs, expected what forward{_signature(module)} takes; {_HOW}")
    given = (args,) if _is_tensor(args) else tuple(args or ())
    args, kwargs, structure = _arguments(module, name, given, dict(kwargs or {}))
    leaves = _leaves(structure)
    if not leaves:
        raise UsageError(
            f"{name}: got no tensor among the example inputs, expected what forward{_signature(module)} takes; {_HOW}"
        )
    return Subject(module, program, args, kwargs, structure, leaves, weights, name, notes)


def parameters(module: Any) -> list[str]:
    """Names of what `forward` takes by name or in order."""
    return [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in (*_POSITIONAL[:2], p.KEYWORD_ONLY)]


def _arguments(
    module: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """(args, kwargs, both by parameter), with as much in order as can be: exporters disagree about the order of keywords."""
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(f"{name}: the example inputs do not fit forward{signature}: {error}") from error
    last = max((i for i, p in enumerate(signature.parameters.values()) if p.name in bound.arguments and p.kind in _POSITIONAL), default=-1)
    ordered: list[Any] = []
    structure: dict[str, Any] = {}
    for i, parameter in enumerate(signature.parameters.values()):
        if i > last:
            break
        if parameter.kind is parameter.VAR_POSITIONAL:
            if parameter.name in bound.arguments:
                ordered += bound.arguments[parameter.name]
                structure[parameter.name] = tuple(bound.arguments[parameter.name])
        elif parameter.kind in _POSITIONAL:
            structure[parameter.name] = bound.arguments.get(parameter.name, parameter.default)
            ordered.append(structure[parameter.name])
    rest: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.name in bound.arguments and parameter.name not in structure:
            value = bound.arguments[parameter.name]
            rest |= value if parameter.kind is parameter.VAR_KEYWORD else {parameter.name: value}
            structure[parameter.name] = value
    return tuple(ordered), rest, structure


def _leaves(structure: Mapping[str, Any]) -> dict[str, Any]:
    """Every tensor by a name: its parameter's, with the place inside where that is a tuple, list or dict."""
    found: dict[str, Any] = {}
    for path, leaf in _tree().tree_flatten_with_path(dict(structure))[0]:
        if _is_tensor(leaf):
            name = "_".join(str(getattr(step, "key", getattr(step, "idx", getattr(step, "name", "")))) for step in path)
            while name in found:
                name += "_"
            found[name] = leaf
    return found


def output_names(outputs: Any) -> list[str]:
    """Names for the tensors of what a module returns: keys of a dict, "output" for one tensor, "output0" … for several."""
    flat = [(path, leaf) for path, leaf in _tree().tree_flatten_with_path(outputs)[0] if _is_tensor(leaf)]
    names: list[str] = []
    for path, _ in flat:
        steps = [str(getattr(step, "key", getattr(step, "idx", getattr(step, "name", "")))) for step in path]
        if not steps or (len(flat) == 1 and all(s.isdigit() for s in steps)):
            name = "output"
        else:
            name = f"output{'_'.join(steps)}" if steps[0].isdigit() else "_".join(steps)
        while name in names:
            name += "_"
        names.append(name)
    return names


def tensors(outputs: Any) -> list[Any]:
    """The tensors of what a module returns, in order."""
    return [leaf for leaf in _tree().tree_leaves(outputs) if _is_tensor(leaf)]


@contextmanager
def evaluating(module: Any) -> Iterator[list[str]]:
    """The module in evaluation mode, and afterwards as it was; gives the names of the parts that were in training mode.

    Raises:
        ExportError: a part stays in training mode when told otherwise.
    """
    if type(module).__name__ == "GraphModule" or not any(m.training for m in module.modules()):
        yield []
        return
    training = {name or WHOLE: part for name, part in module.named_modules() if part.training}
    try:
        module.eval()
        stuck = [name for name, part in module.named_modules() if part.training and part._parameters | part._buffers]
        if stuck:
            raise ExportError(
                f"{type(module).__name__}: {stuck[0]!r} stays in training mode after eval() (it overrides train()); "
                "an engine computes what evaluation does: let its train(False) switch it"
            )
        yield list(training)
    finally:
        for part in training.values():
            part.training = True


def device_of(weights: Mapping[str, Any], leaves: Mapping[str, Any]) -> Sequence[str]:
    """The devices that weights and inputs are on."""
    return sorted({str(t.device) for t in (*weights.values(), *leaves.values())})


def _signature(module: Any) -> str:
    return str(inspect.signature(module.forward))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, require("torch", "torch", "exporting from PyTorch").Tensor)


def _tree() -> Any:
    return require("torch.utils._pytree", "torch", "exporting from PyTorch")
