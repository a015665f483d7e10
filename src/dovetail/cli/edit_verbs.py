"""The verbs of `dovetail edit`: their arguments, the edit, and what its result is compared by."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dovetail.cli import options
from dovetail.cli.data import load_arrays
from dovetail.cli.edit_arguments import attribute, attributes, operand, pair, tensor_type
from dovetail.core.errors import UsageError
from dovetail.model import edit
from dovetail.model.edit import checked
from dovetail.model.edit.dtypes import wide_weights
from dovetail.model.edit.rename import GROUPS
from dovetail.model.model import Model
from dovetail.model.rules.log import text as rule_lines


@dataclass
class Change:
    """What a verb did."""

    model: Model
    check: Callable[[], float | None] | None = None
    """Compares the result with the original, where the meaning must stay; None as a result: `unchecked` says why."""
    unchecked: str = ""
    notes: list[str] = field(default_factory=list)
    external: bool | None = None
    """Where the weights are to be written, if that is the edit."""


@dataclass(frozen=True)
class Verb:
    """One verb of `dovetail edit`."""

    summary: str
    description: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Model, argparse.Namespace], Change]


def _add_operator(parser: Any, required: bool = True) -> None:
    parser.add_argument("--op", required=required, help="the operator")
    parser.add_argument("--domain", default="", help="its domain (default: ONNX's own)")
    parser.add_argument("--domain-version", type=options.positive, default=1, metavar="N", help="version of a domain new to the model")
    parser.add_argument("--attr", type=attribute, nargs="+", action="extend", default=[], metavar="NAME=VALUE",
                        help="attributes: alpha=0.1, axes=[1,2], mode=linear, to=float16")  # fmt: skip


def _add_part(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument("--inputs", nargs="+", required=required, metavar="TENSOR", help="tensors where the part begins")
    parser.add_argument("--outputs", nargs="+", required=required, metavar="TENSOR", help="tensors where it ends")


def _add_types(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--types", type=tensor_type, nargs="+", default=[], metavar="NAME:TYPE:[…]",
                        help="types of tensors whose type is not known, such as a:float:[N,3]")  # fmt: skip


def _nothing(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


# ---------------------------------------------------------------------- parts
def _extract_arguments(parser: argparse.ArgumentParser) -> None:
    _add_part(parser, False)
    _add_types(parser)


def _extract(model: Model, args: argparse.Namespace) -> Change:
    return Change(edit.extract(model, args.inputs, args.outputs, types=dict(args.types)))


def _replace_arguments(parser: argparse.ArgumentParser) -> None:
    _add_part(parser, False)
    _add_operator(parser, False)
    parser.add_argument("--with", dest="other", metavar="PART.onnx", help="the model that takes the place of the part")
    parser.add_argument("--map", type=pair, nargs="+", default=[], metavar="THEIRS=OURS",
                        help="which tensor stands for which input or output of PART.onnx (default: in the order given)")  # fmt: skip
    parser.add_argument("--prefix", default="", help="put before the names of what PART.onnx brings")
    parser.add_argument("--op-type", metavar="OP", help="every node of this operator becomes one of --op")
    parser.add_argument("--op-domain", default="", metavar="DOMAIN", help="the domain of --op-type")
    parser.add_argument("--attr-map", type=pair, nargs="+", default=[], metavar="OLD=NEW", help="new names of attributes that nodes have")
    parser.add_argument("--attr-drop", nargs="+", default=[], metavar="NAME", help="attributes that nodes lose")


def _replace(model: Model, args: argparse.Namespace) -> Change:
    if args.op_type:
        if not args.op or args.other or args.inputs or args.outputs:
            raise UsageError("replace: --op-type takes --op and attributes, and neither --with nor --inputs and --outputs")
        names: dict[str, str | None] = {**dict(args.attr_map), **dict.fromkeys(args.attr_drop)}
        return Change(edit.replace_op(model, args.op_type, args.op, old_domain=args.op_domain, domain=args.domain,
                                      version=args.domain_version, attributes=attributes(args), attribute_names=names))  # fmt: skip
    if not args.inputs or not args.outputs or bool(args.op) == bool(args.other):
        raise UsageError("replace: expected --inputs and --outputs with --op or --with, or --op-type with --op")
    if args.other:
        other = Model.load(args.other)
        return Change(edit.replace_by_model(model, args.inputs, args.outputs, other, names=dict(args.map), prefix=args.prefix))
    return Change(edit.replace(model, args.inputs, args.outputs, args.op, domain=args.domain, version=args.domain_version,
                               attributes=attributes(args)))  # fmt: skip


def _rewrite(model: Model, args: argparse.Namespace) -> Change:
    result, log = edit.rewrite(model, args.rules)
    return Change(result, lambda: checked.same(model, result, "rewrite"), notes=rule_lines(log.json(), skipped=False))


# ---------------------------------------------------------------------- nodes
def _insert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--on", required=True, metavar="TENSOR", help="the tensor that the new node reads")
    _add_operator(parser, False)
    parser.add_argument("--extra", type=operand, nargs="+", default=[], metavar="X",
                        help="the node's other inputs: names of tensors, or constants: =0.5, =[1,2], =0:int8")  # fmt: skip
    parser.add_argument("--before", nargs="+", default=[], metavar="NODE", help="only for these readers, by name or pattern (default: all)")
    parser.add_argument("--qdq", type=float, metavar="SCALE", help="QuantizeLinear and DequantizeLinear with this scale, instead of --op")
    parser.add_argument("--zero-point", type=int, default=0, help="of --qdq (default: 0)")
    parser.add_argument("--qtype", default="int8", help="of --qdq: int8 (default), uint8, int16, uint16")


def _insert(model: Model, args: argparse.Namespace) -> Change:
    if (args.qdq is None) == (args.op is None):
        raise UsageError("insert: expected --op or --qdq SCALE")
    if args.qdq is not None:
        return Change(edit.insert_qdq(model, args.on, args.qdq, args.zero_point, args.qtype, before=args.before))
    return Change(edit.insert(model, args.on, args.op, domain=args.domain, version=args.domain_version, attributes=attributes(args),
                              inputs=args.extra, before=args.before))  # fmt: skip


def _delete_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", nargs="+", default=[], metavar="NODE", help="names or patterns of nodes, or of what they make")
    parser.add_argument("--op", help="all nodes of an operator (with --nodes: those of them)")


def _delete(model: Model, args: argparse.Namespace) -> Change:
    return Change(edit.delete(model, args.nodes, op=args.op))


# ---------------------------------------------------------------------- names, shapes and types
def _rename_arguments(parser: argparse.ArgumentParser) -> None:
    for name, what in (("tensors", "inputs, outputs, weights, values"), ("nodes", "nodes"), ("dims", "named dimensions")):
        parser.add_argument(f"--{name}", type=pair, nargs="+", default=[], metavar="OLD=NEW", help=f"new names of {what}")
    parser.add_argument("--regex", nargs=2, metavar=("PATTERN", "NEW"), help="a regular expression and what to put for it, as re.sub")
    parser.add_argument("--prefix", default="", help="put before names")
    parser.add_argument("--of", nargs="+", choices=GROUPS, default=["tensors", "nodes"], metavar="GROUP",
                        help=f"what --regex and --prefix apply to (default: tensors nodes): {', '.join(GROUPS)}")  # fmt: skip


def _rename(model: Model, args: argparse.Namespace) -> Change:
    tensors, pattern = dict(args.tensors), tuple(args.regex) if args.regex else None
    result = edit.rename(model, tensors=tensors, nodes=dict(args.nodes), dims=dict(args.dims), pattern=pattern, prefix=args.prefix,
                         of=args.of)  # fmt: skip
    names = {b.name: a.name for b, a in zip(_inputs(model), _inputs(result), strict=True)}
    return Change(result, lambda: checked.same(model, result, "rename", border=checked.renamed(names)))


def _inputs(model: Model) -> list[Any]:
    weights = {t.name for t in model.proto.graph.initializer}
    return [v for v in model.proto.graph.input if v.name not in weights]


def _set_shape_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", type=options.shape, nargs="+", required=True, metavar="NAME:[…]",
                        help="shapes of inputs and outputs, such as x:[N,3,224,224]")  # fmt: skip


def _set_shape(model: Model, args: argparse.Namespace) -> Change:
    return Change(edit.set_shape(model, dict(args.shapes)))


def _set_dtype_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--io", nargs="+", default=[], metavar="TYPE | NAME=TYPE",
                        help="one type for all inputs and outputs that are floats (float16), or types by name (x=uint8)")  # fmt: skip
    parser.add_argument("--weights", metavar="TYPE", help="store fp32 weights in float16 or bfloat16; they are cast when they are used")


def _set_dtype(model: Model, args: argparse.Namespace) -> Change:
    wanted: dict[str, str] | str | None = dict(map(pair, args.io)) if any("=" in x for x in args.io) else None
    if args.io and wanted is None:
        if len(args.io) > 1:
            raise UsageError(f"set-dtype: got {args.io}, expected one type for all, or NAME=TYPE")
        wanted = args.io[0]
    result = edit.set_dtype(model, wanted, weights=args.weights)
    wide = wide_weights(result) if args.weights else []
    notes = [f"{name} stays in fp32: it has values beyond the range of {args.weights}" for name in wide]
    return Change(result, lambda: checked.same_cast(model, result), notes=notes)


def _opset_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--opset", type=options.positive, metavar="N", help="version of ONNX's operators")
    parser.add_argument("--ir-version", type=options.positive, metavar="N", help="version of the file format")


def _opset(model: Model, args: argparse.Namespace) -> Change:
    result = edit.convert_opset(model, args.opset, ir_version=args.ir_version)
    return Change(result, lambda: checked.same(model, result, "convert-opset"))


def _layout_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("layouts", type=pair, nargs="+", metavar="NAME=LAYOUT", help="x=NHWC (x was NCHW), y=NCHW; NWC, NCW, NDHWC, NCDHW")


def _layout(model: Model, args: argparse.Namespace) -> Change:
    result = edit.io_layout(model, dict(args.layouts))
    border = checked.transposed(model, dict(args.layouts))
    return Change(result, lambda: checked.same(model, result, "io-layout", border=border))


def _batch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", required=True, metavar="N", help="a number, or a name for any number")
    parser.add_argument("--inputs", nargs="+", metavar="NAME",
                        help="inputs that have a batch (default: those whose first size is the first input's)")  # fmt: skip


def _batch(model: Model, args: argparse.Namespace) -> Change:
    size: int | str = int(args.size) if args.size.lstrip("-").isdigit() else args.size
    result, found = edit.rebatch(model, size, inputs=args.inputs)
    notes = [f"changed {text}" for text in found.fixed] + [f"left alone, look at it: {text}" for text in found.suspects]
    why = f"not compared: {size} is no multiple of {found.old}"
    return Change(result, lambda: checked.same_batches(model, result, found.inputs, size), why, notes)


# ---------------------------------------------------------------------- what comes in and goes out
def _names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="tensors")


def _mark_arguments(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    _add_types(parser)


def _mark(model: Model, args: argparse.Namespace) -> Change:
    result, count = edit.mark_output(model, args.names, types=dict(args.types)), len(model.proto.graph.output)
    return Change(result, lambda: checked.same(model, result, "mark-output", border=checked.first_outputs(count)))


def _unmark(model: Model, args: argparse.Namespace) -> Change:
    result = edit.unmark_output(model, args.names)
    # The original has more outputs than the result, so it is the one whose outputs are chosen from.
    return Change(result, lambda: checked.same(result, model, "unmark-output", border=checked.chosen_outputs(model, result)))


def _freeze_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--values", required=True, metavar="X.npz", help="values of the inputs, by name")


def _freeze(model: Model, args: argparse.Namespace) -> Change:
    return Change(edit.freeze(model, load_arrays(args.values)))


def _to_input(model: Model, args: argparse.Namespace) -> Change:
    result = edit.to_input(model, args.names)
    return Change(result, lambda: checked.same(model, result, "to-input", border=checked.with_more_inputs(model, args.names)))


# ---------------------------------------------------------------------- weights
def _strip_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--min-bytes", type=options.positive, default=1024, metavar="N", help="smaller ones stay (default and least: 1024)")


def _strip(model: Model, args: argparse.Namespace) -> Change:
    result = edit.strip(model, least=args.min_bytes)
    note = "weights are named, typed and hashed; `dovetail edit restore` puts their values back"
    return Change(result, unchecked="not compared: it has no weights", notes=[note])


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, metavar="FILE", help="the original .onnx, or .safetensors or .npz")
    parser.add_argument("--names", type=pair, nargs="+", default=[], metavar="MODEL=FILE", help="what weights are called in the file")
    parser.add_argument("--no-hash", action="store_true", help="take other values than those that were stripped")


def _restore(model: Model, args: argparse.Namespace) -> Change:
    result = edit.restore(model, args.weights, names=dict(args.names), verify=not args.no_hash)
    values = "not compared: other values may have been put in" if args.no_hash else "all values are those that were stripped (SHA-256)"
    return Change(result, unchecked=values)


def _move(external: bool, model: Model, args: argparse.Namespace) -> Change:
    return Change(model, external=external)


EDITS = {
    "extract": Verb("cut out the part between tensors", "The part that computes --outputs from --inputs (default: the model's own).",
                    _extract_arguments, _extract),
    "replace": Verb("put an operator or another model in the place of a part, or an operator for another",
                    "  replace m.onnx -o n.onnx --inputs a --outputs b --op HardSwish\n"
                    "  replace m.onnx -o n.onnx --inputs a --outputs b --with part.onnx\n"
                    "  replace m.onnx -o n.onnx --op-type Relu --op LeakyRelu --attr alpha=0.1", _replace_arguments, _replace),
    "rewrite": Verb("apply rewrite rules", "Rules (@dovetail.rewrite) of files and of this package; near misses are named.",
                    options.add_rules, _rewrite),
    "insert": Verb("put a node on a tensor", "A node on a tensor; what read the tensor reads the node's result. An output keeps its name.",
                   _insert_arguments, _insert),
    "delete": Verb("take out nodes", "Without some nodes; what read their result reads their input, where the types fit.",
                   _delete_arguments, _delete),
    "rename": Verb("rename tensors, nodes, dimensions", "Other names, by mapping, regular expression or prefix.",
                   _rename_arguments, _rename),
    "set-shape": Verb("change shapes of inputs and outputs", "Other shapes of inputs and outputs; all that follow are inferred again.",
                      _set_shape_arguments, _set_shape),
    "set-dtype": Verb("change types of inputs, outputs, stored weights", "Other element types, by Casts at the border.",
                      _set_dtype_arguments, _set_dtype),
    "convert-opset": Verb("change opset and IR version", "Another opset or IR version; operators that stop it are listed.",
                          _opset_arguments, _opset),
    "io-layout": Verb("change NCHW inputs and outputs to NHWC, and back", "Other orders of axes at the border, by Transposes.",
                      _layout_arguments, _layout),
    "batch": Verb("fix the batch, or make it dynamic", "Another first dimension of the inputs; constant targets of Reshapes follow it.",
                  _batch_arguments, _batch),
    "mark-output": Verb("add outputs", "Values inside the model become outputs, too.", _mark_arguments, _mark),
    "unmark-output": Verb("remove outputs", "Fewer outputs, and without what only they needed.", _names, _unmark),
    "freeze": Verb("make inputs constant", "Inputs become weights with the values of an .npz file.", _freeze_arguments, _freeze),
    "to-input": Verb("make weights inputs", "Weights become inputs; their values are dropped.", _names, _to_input),
    "strip": Verb("take out the values of weights", "A file of kilobytes: weights keep name, type and shape, with a hash of their values.",
                  _strip_arguments, _strip),
    "restore": Verb("put stripped values back", "The values of stripped weights, checked by their hash.", _restore_arguments, _restore),
    "externalise": Verb("move weights to NEW.onnx.data", "Weights of 1 KiB and more go to a file beside the model.",
                        _nothing, partial(_move, True)),
    "inline": Verb("move weights into the model", "All weights in one file.", _nothing, partial(_move, False)),
}  # fmt: skip
"""Verb to what it takes and does."""
