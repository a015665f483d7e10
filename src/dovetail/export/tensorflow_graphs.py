"""TensorFlow graphs without variables: functions frozen, graph files read, what they compute and what they lack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.core.errors import ExportError, ModelError, UsageError
from dovetail.core.text import did_you_mean
from dovetail.export.tensorflow_runtime import quiet, tensorflow_module, tf2onnx_module

_LARGE_BYTES = 1 << 30  # constants are serialised more than once, with shapes and names

Arrays = dict[str, np.ndarray[Any, Any]]
Shapes = Mapping[str, Sequence[int | str | None]]


@dataclass
class Frozen:
    """A model of TensorFlow as one graph of constants and operators.

    `inputs` and `outputs` are names of tensors ("x:0"), `names` what the user calls them. `run` is TensorFlow itself on the model as it
    was given: arrays by the user's names in and out.
    """

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    names: dict[str, str]
    run: Callable[[Arrays], Arrays]
    graph: Any = None
    """GraphDef; None for a TFLite model."""
    tflite: Path | None = None
    tables: dict[Any, Any] = field(default_factory=dict)
    trace: Any = None
    """The function's own graph, whose operations know the source lines that made them; None where it was read from a file."""
    shared_batch: bool = False
    """Whether the first axis of every input is the same batch, as in a Keras model."""
    ranks: dict[str, int | None] = field(default_factory=dict)
    """Of outputs, as the function says."""
    large: bool = False
    """Whether its constants may be too many for one serialised proto."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wanted:
    """What a caller says of a source; see `dovetail.export.tensorflow`."""

    inputs: Sequence[str] | None = None
    outputs: Sequence[str] | None = None
    signature: str | Sequence[Any] | None = None
    tag: str | None = None
    shapes: Shapes = field(default_factory=dict)
    large: bool = False
    verbose: bool = False


# ---------------------------------------------------------------------- functions
def freeze_function(
    concrete: Any,
    run: Callable[[Arrays], Arrays],
    *,
    kind: str,
    name: str,
    names: dict[str, str],
    wanted: Wanted,
    trackable: Any = None,
) -> Frozen:
    """A concrete function as a graph in which variables are constants.

    Args:
        concrete: `tf.types.experimental.ConcreteFunction`.
        run: calls it on arrays.
        kind: what it came from, for people.
        name: its name, for people.
        names: the user's name of each of its inputs and outputs.
        wanted: `large` keeps its constants out of serialised protos, which end at 2 GiB; so does it if they are too many for one.
        trackable: what holds its lookup tables; default none.

    Raises:
        ExportError: it is in training mode, or cannot be frozen.
    """
    _refuse_training(concrete.graph.as_graph_def(), name)
    loader = tf2onnx_module("tf_loader", wanted.verbose)
    tf = tensorflow_module()
    own = len(concrete.inputs) - len(concrete.captured_inputs)
    inputs = [t.name for t in concrete.inputs[:own]]
    outputs = [t.name for t in concrete.outputs]
    sizes = [v.dtype.size * v.shape.num_elements() for v in concrete.variables if v.shape.is_fully_defined()]
    large = wanted.large or sum(sizes) > _LARGE_BYTES
    try:
        with quiet(wanted.verbose), tf.device("/cpu:0"):
            graph, tables = loader.from_trackable(trackable or tf.Module(), concrete, inputs, outputs, large)
    except (ValueError, TypeError, RuntimeError, tf.errors.OpError) as error:
        raise ExportError(f"{name}: TensorFlow cannot freeze its variables: {_first_line(error)}") from error
    ranks = {t.name: t.shape.rank for t in concrete.outputs}
    return Frozen(kind, name, inputs, outputs, names, run, graph, None, tables, concrete.graph, ranks=ranks, large=large)


def _refuse_training(graph: Any, name: str) -> None:
    """Raise if a graph normalises by its batch, which only training means."""
    found = [n.name for n in _nodes(graph) if n.op.startswith("FusedBatchNorm") and "Grad" not in n.op and n.attr["is_training"].b]
    if found:
        raise ExportError(
            f"{name}: got a graph in training mode ({len(found)} batch normalisations by the statistics of their batch, such as "
            f"{found[0]!r}), expected inference; call the model with training=False in the function or signature that you export"
        )


def _nodes(graph: Any) -> Iterator[Any]:
    """Every node of a GraphDef, those of its functions included."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def operators(graph: Any) -> Counter[str]:
    """How many nodes of each operator a GraphDef has, bodies of its functions included, without constants and placeholders."""
    return Counter(n.op for n in _nodes(graph) if n.op not in ("Const", "Placeholder", "NoOp"))


# ---------------------------------------------------------------------- graph files
def read_graph(path: Path) -> Any:
    """The GraphDef in a `.pb` or `.pbtxt` file.

    Raises:
        ModelError: it cannot be read, or is none.
    """
    tf = tensorflow_module()
    graph = tf.compat.v1.GraphDef()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read, {error.strerror}; check the path") from error
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError

    try:
        if path.suffix == ".pbtxt":
            text_format.Parse(data.decode(), graph)
        else:
            graph.ParseFromString(data)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path}: got data that is no TensorFlow graph ({_first_line(error)}), expected a frozen GraphDef; of a SavedModel, give "
            "the folder"
        ) from error
    if not graph.node:
        raise ModelError(f"{path}: got a graph without nodes, expected a frozen GraphDef; of a SavedModel, give the folder")
    return graph


def freeze_graph(path: Path, wanted: Wanted) -> Frozen:
    """A frozen graph file.

    Args:
        path: the file.
        wanted: names of its input tensors ("x:0" or "x"), default its placeholders; and of its output tensors, default what no node
            reads.

    Raises:
        ModelError: no graph, or one with variables.
        UsageError: a tensor that it does not have.
        ExportError: it is in training mode.
    """
    tf, verbose = tensorflow_module(), wanted.verbose
    inputs, outputs = wanted.inputs, wanted.outputs
    graph = read_graph(path)
    variables = [n.name for n in graph.node if n.op in ("Variable", "VariableV2", "VarHandleOp")]
    if variables:
        raise ModelError(
            f"{path}: got a graph with {len(variables)} variables (such as {variables[0]!r}), expected a frozen one; "
            "export a SavedModel instead, or freeze it with tf.compat.v1.graph_util.convert_variables_to_constants"
        )
    _refuse_training(graph, str(path))
    with quiet(verbose), tf.Graph().as_default() as imported:
        try:
            tf.import_graph_def(graph, name="")
        except (ValueError, TypeError, tf.errors.OpError) as error:
            raise ModelError(
                f"{path}: TensorFlow does not read it: {_first_line(error)}; a custom op needs tf.load_op_library first"
            ) from error
    notes = []
    if inputs is None:
        inputs = [f"{n.name}:0" for n in graph.node if n.op == "Placeholder"]
        notes.append(f"inputs are its placeholders: {', '.join(inputs) or 'none'}")
    if outputs is None:
        read = {name.lstrip("^").partition(":")[0] for n in graph.node for name in n.input}
        outputs = [t.name for n in imported.get_operations() if n.name not in read and n.type != "Placeholder" for t in n.outputs]
        notes.append(f"outputs are what no node reads: {', '.join(outputs) or 'nothing'}")
    taken = [tensor_name(name, imported, "--inputs") for name in inputs]
    made = [tensor_name(name, imported, "--outputs") for name in outputs]
    if not made:
        raise UsageError(f"{path}: no outputs; name them with --outputs")
    names = dict(zip([*taken, *made], plain_names([*taken, *made]), strict=True))

    def run(feeds: Arrays) -> Arrays:
        with quiet(verbose), tf.compat.v1.Session(graph=imported) as session:
            results = session.run(made, {tensor: feeds[names[tensor]] for tensor in taken if names[tensor] in feeds})
        return {names[tensor]: np.asarray(array) for tensor, array in zip(made, results, strict=True)}

    loader = tf2onnx_module("tf_loader", verbose)
    with quiet(verbose), tf.Graph().as_default():
        tf.import_graph_def(graph, name="")
        try:
            optimized = loader.tf_optimize(taken, made, graph)
        except (ValueError, RuntimeError, tf.errors.OpError) as error:
            raise ExportError(f"{path}: TensorFlow cannot prepare it: {_first_line(error)}") from error
    return Frozen("frozen graph", str(path), taken, made, names, run, _reachable(optimized, taken, made), notes=notes)


def _reachable(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The part of a graph between some tensors; inputs inside of it become placeholders."""
    tf = tensorflow_module()
    with tf.Graph().as_default() as imported:
        tf.import_graph_def(graph, name="")
        types = {name: imported.get_tensor_by_name(name) for name in inputs}
    cut = {name.partition(":")[0] for name in inputs if imported.get_operation_by_name(name.partition(":")[0]).type != "Placeholder"}
    if any(not name.endswith(":0") for name in inputs):
        raise UsageError(f"--inputs: got {list(inputs)}, expected first outputs of nodes (NAME:0)")
    by_name = {n.name: n for n in graph.node}
    kept: set[str] = set()
    todo = [name.partition(":")[0] for name in (*outputs, *inputs)]
    while todo:
        name = todo.pop()
        if name not in kept:
            kept.add(name)
            if name not in cut:
                todo += [i.lstrip("^").partition(":")[0] for i in by_name[name].input]
    result = tf.compat.v1.GraphDef(versions=graph.versions, library=graph.library)
    for node in graph.node:
        if node.name in cut:
            tensor = types[f"{node.name}:0"]
            with tf.Graph().as_default() as single:
                tf.compat.v1.placeholder(tensor.dtype, tensor.shape, name=node.name)
            result.node.append(single.as_graph_def().node[0])
        elif node.name in kept:
            result.node.append(node)
    return result


def tensor_name(given: str, graph: Any, option: str) -> str:
    """The name of a tensor of a graph: "x:0" for "x".

    Raises:
        UsageError: there is none of that name; the nearest one.
    """
    name = given if ":" in given else f"{given}:0"
    try:
        return str(graph.get_tensor_by_name(name).name)
    except (KeyError, ValueError) as error:
        known = [t.name for n in graph.get_operations() for t in n.outputs]
        raise UsageError(f"{option}: got {given!r}, expected the name of a tensor of the graph{did_you_mean(name, known)}") from error


def plain_names(tensors: Sequence[str]) -> list[str]:
    """Names for people: without ":0" where that is unambiguous, and without characters that only graphs use."""
    bare = [name.removesuffix(":0").replace(":", "_") for name in tensors]
    return [name if bare.count(name) == 1 else tensor for name, tensor in zip(bare, tensors, strict=True)]


def with_shapes(frozen: Frozen, shapes: Shapes) -> None:
    """Give placeholders of a graph other shapes.

    Raises:
        UsageError: an unknown input, a wrong rank or size; a rank that nobody says.
    """
    tf = tensorflow_module()
    tensors = {frozen.names.get(t, t): t for t in frozen.inputs}
    for name, shape in shapes.items():
        tensor = tensors.get(name) or (name if name in frozen.inputs else None)
        if tensor is None:
            raise UsageError(f"shapes: got {name!r}, expected names of inputs: {sorted(tensors)}{did_you_mean(name, tensors)}")
        node = next((n for n in frozen.graph.node if n.name == tensor.partition(":")[0]), None)
        if node is None:
            continue  # unused: nothing depends on its shape
        old = tf.TensorShape(node.attr["shape"].shape)
        new = tf.TensorShape([size if isinstance(size, int) else None for size in shape])
        if not old.is_compatible_with(new):
            raise UsageError(f"shapes: got {list(shape)} for {name!r}, expected what fits {_shape_text(old)}")
        node.attr["shape"].shape.CopyFrom(new.as_proto())
    for node in frozen.graph.node:
        if node.op == "Placeholder" and f"{node.name}:0" in frozen.inputs and node.attr["shape"].shape.unknown_rank:
            label = frozen.names.get(f"{node.name}:0", node.name)
            raise UsageError(f"{frozen.name}: the rank of input {label!r} is not known; give its shape: --shapes {label}:[…]")
    if shapes:
        for node in frozen.graph.node:
            # Shapes inferred for the old ones would contradict the new ones.
            node.attr.pop("_output_shapes", None)


def _shape_text(shape: Any) -> str:
    return "any shape" if shape.rank is None else "[" + ",".join("?" if d is None else str(d) for d in shape.as_list()) + "]"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300]
