"""`dovetail.survey`: which nodes of a model can be imported, each with what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.core.errors import Error
from dovetail.frontend.importer import main_context
from dovetail.frontend.protos import domain_of
from dovetail.frontend.reader import ModelSource, ShapeOverride, read_model
from dovetail.frontend.session import FAILED, Failed


@dataclass(frozen=True)
class NodeSupport:
    """What a survey says of one node of the main graph.

    Attributes:
        index: position in the model.
        name, op, domain: of the node.
        supported: whether it can be imported; for a blocked node, whether there is an importer, function or plugin for it.
        blocked: it reads what an unsupported node should compute, so that no more is known.
        reasons: what is wrong, one text per node (of its subgraphs or functions, too) that cannot be imported.
    """

    index: int
    name: str
    op: str
    domain: str
    supported: bool
    blocked: bool = False
    reasons: tuple[str, ...] = ()


def survey(model: ModelSource, shapes: ShapeOverride | None = None) -> tuple[NodeSupport, ...]:
    """Import a model node by node, without building it, and say of each node of its main graph how that went.

    Args:
        model: ONNX: path, bytes or ModelProto.
        shapes: as of `dovetail.build`.

    Raises:
        ModelError: the model cannot be read, or its inputs or initializers are invalid.
    """
    context = main_context(*read_model(model))
    context.declare_inputs(shapes or {})
    problems, found = context.session.problems, []
    for index, proto in enumerate(context.session.model.graph.node):
        before = len(problems)
        try:
            context.import_node(proto)
            reasons = tuple(problems[before:])
        except Error as error:
            reasons = (str(error),)
            for name in proto.output:
                context.scope.setdefault(name, FAILED)
        blocked = not reasons and any(isinstance(context.scope.get(name), Failed) for name in proto.output)
        name = proto.name or next((o for o in proto.output if o), proto.op_type)
        found.append(NodeSupport(index, name, proto.op_type, domain_of(proto.domain), not reasons, blocked, reasons))
    return tuple(found)
