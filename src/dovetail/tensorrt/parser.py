"""`OnnxParser`: ONNX models as networks, by Dovetail's importer and the importers that users register."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import dovetail
from dovetail.core.errors import Error, ModelError, UnsupportedOpError
from dovetail.frontend.protos import domain_of
from dovetail.frontend.session import NO_WAY
from dovetail.frontend.survey import NodeSupport
from dovetail.tensorrt.config import IBuilderConfig
from dovetail.tensorrt.containers import NodeIndices, SubGraphCollection
from dovetail.tensorrt.context_manager import Deprecated
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import (
    ErrorCode,
    NetworkDefinitionCreationFlag,
    OnnxParserFlag,
    WeightsRole,
)
from dovetail.tensorrt.logger import ILogger, Reporter
from dovetail.tensorrt.network import INetworkDefinition
from dovetail.tensorrt.onnx_models import given_array, model_of
from dovetail.tensorrt.onnx_walk import Walk
from dovetail.tensorrt.parser_errors import ErrorList, ParserError, code_of
from dovetail.tensorrt.parser_plugins import PluginFallback, can_import
from dovetail.tensorrt.tensor import ITensor

_NO_PLUGIN = "Plugin not found, are the plugin name, version, and namespace correct?"
_ALL_FLAGS = sum(1 << int(flag) for flag in OnnxParserFlag.__members__.values())
_NO_DLA = (
    OnnxParserFlag.ENABLE_UINT8_AND_ASYMMETRIC_QUANTIZATION_DLA, OnnxParserFlag.REPORT_CAPABILITY_DLA, OnnxParserFlag.ADJUST_FOR_DLA,
)  # fmt: skip
# How the importer says which node of a function or subgraph it could not import.
_PROBLEM = re.compile(r"(?P<name>.*?) \((?P<op>[\w:.\-]+)\): (?P<cause>.*)", re.DOTALL)


def get_nv_onnx_parser_version() -> int:
    """The parser's version as one number: 10 000 times the major one, 100 times the minor one, and the patch."""
    from dovetail.core.env import env

    major, minor, patch = (int(part) for part in env().tensorrt_version.split(".")[:3])
    return major * 10000 + minor * 100 + patch


class OnnxParser(ErrorList, Deprecated):
    """Adds ONNX models to a network. Failures give False, errors to be read here, and messages to the logger."""

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = expect(INetworkDefinition, network, "OnnxParser: network")
        self._reporter = Reporter(logger)
        self._flags = 1 << OnnxParserFlag.NATIVE_INSTANCENORM
        self._errors: list[ParserError] = []
        self._subgraphs: SubGraphCollection = SubGraphCollection()
        self._config: IBuilderConfig | None = None
        self._loaded: tuple[onnx.ModelProto, Path | None] | None = None
        self._given: dict[str, np.ndarray[Any, Any]] = {}
        self._walk: Walk | None = None

    # ------------------------------------------------------------------ parsing
    def parse(self, model: Any, path: str | None = None) -> bool:
        """Add a serialized model; False where a node cannot be imported, and then `get_error` says which and why.

        Args:
            model: the bytes of a ModelProto.
            path: of the model's file, beside which external data lie.
        """
        found = self._read(model, path)
        return found is not None and self._parse(*found, {})

    def parse_with_weight_descriptors(self, model: Any) -> bool:
        """`parse` of a model whose weights may be elsewhere (up to 10)."""
        return self.parse(model)

    def parse_from_file(self, model: str) -> bool:
        """`parse` of a file."""
        name = expect(str, model, "OnnxParser.parse_from_file: model")
        found = self._read(Path(name), None)
        if found is None:
            return False
        proto = found[0]
        opset = next((o.version for o in proto.opset_import if not domain_of(o.domain)), 0)
        for line in (
            f"Input filename:   {name}", f"ONNX IR version:  {proto.ir_version}", f"Opset version:    {opset}",
            f"Producer name:    {proto.producer_name}", f"Producer version: {proto.producer_version}",
        ):  # fmt: skip
            self._reporter.info(line)
        return self._parse(*found, {})

    def load_model_proto(self, model: Any, path: str | None = None) -> bool:
        """Read a serialized model for `parse_model_proto`, before which `load_initializer` may give its weights."""
        self._loaded, self._given = self._read(model, path), {}
        return self._loaded is not None

    def load_initializer(self, name: str, data: Any, size: int) -> bool:
        """Give an initializer of the loaded model its values; False where it has none of that name and size.

        Args:
            data: the address of the values in host memory, or a buffer; it must stay until the model is parsed.
            size: in bytes.
        """
        if self._loaded is None:
            self._fail("loadInitializer", ErrorCode.INVALID_VALUE, "No model is loaded: call load_model_proto first.")
            return False
        try:
            self._given[name] = given_array(self._loaded[0], expect(str, name, "OnnxParser.load_initializer: name"), data, size)
        except ModelError as error:
            self._fail("loadInitializer", ErrorCode.INVALID_VALUE, str(error))
            return False
        return True

    def parse_model_proto(self) -> bool:
        """Parse the loaded model, with the initializers that were given."""
        if self._loaded is None:
            self._fail("parseModelProto", ErrorCode.INVALID_VALUE, "No model is loaded: call load_model_proto first.")
            return False
        return self._parse(*self._loaded, self._given)

    # ------------------------------------------------------------------ what is supported
    def supports_operator(self, op_name: str) -> bool:
        """Whether there is an importer for an op, ONNX's own function body of it, or a plugin of its name."""
        name = expect(str, op_name, "OnnxParser.supports_operator: op_name")
        if can_import(name, "", onnx.defs.onnx_opset_version()):
            return True
        return PluginFallback(self._network, self._reporter, self._flags).knows(onnx.helper.make_node(name, [], []))

    def supports_model(self, model: Any, path: str | None = None) -> tuple[bool, SubGraphCollection]:
        """Whether a model can be parsed, and which runs of its nodes can (up to 10): lists of positions, each with True."""
        return self.supports_model_v2(model, path), SubGraphCollection(self._subgraphs)

    def supports_model_v2(self, model: Any, path: str | None = None) -> bool:
        """Whether a model can be parsed; then the subgraphs here are the runs of nodes that can, and errors say why others cannot."""
        self._subgraphs = SubGraphCollection()
        self._errors = []
        found = self._read(model, path)
        if found is None:
            return False
        try:
            nodes = self._survey(*found)
        except Error as error:
            self._fail("supportsModelV2", ErrorCode.INVALID_GRAPH, str(error))
            return False
        run = NodeIndices()
        for node in nodes:
            if node.supported:
                run.append(node.index)
            elif run:
                self._subgraphs.append((run, True))
                run = NodeIndices()
        if run:
            self._subgraphs.append((run, True))
        return not self._errors

    @property
    def num_subgraphs(self) -> int:
        """How many subgraphs `supports_model_v2` has found."""
        return len(self._subgraphs)

    def is_subgraph_supported(self, index: int) -> bool:
        """Whether a subgraph can be parsed."""
        position = operator.index(index)
        return 0 <= position < len(self._subgraphs) and self._subgraphs[position][1]

    def get_subgraph_nodes(self, index: int) -> NodeIndices:
        """The positions of a subgraph's nodes in the model; none beyond the last subgraph."""
        position = operator.index(index)
        return NodeIndices(self._subgraphs[position][0]) if 0 <= position < len(self._subgraphs) else NodeIndices()

    # ------------------------------------------------------------------ errors and options
    @property
    def flags(self) -> int:
        """The bits of all `OnnxParserFlag`s that are set; NATIVE_INSTANCENORM at first."""
        return self._flags

    @flags.setter
    def flags(self, value: int) -> None:
        bits = operator.index(value)
        if bits & ~_ALL_FLAGS:
            self._reporter.error(f"OnnxParser.flags: got {bits:#x}, expected some of {_ALL_FLAGS:#x}.")
            return
        self._flags = bits

    def set_flag(self, flag: OnnxParserFlag) -> None:
        """Set a flag; those before stay."""
        self._flags |= 1 << expect(OnnxParserFlag, flag, "OnnxParser.set_flag: flag")

    def clear_flag(self, flag: OnnxParserFlag) -> None:
        """Clear a flag."""
        self._flags &= ~(1 << expect(OnnxParserFlag, flag, "OnnxParser.clear_flag: flag"))

    def get_flag(self, flag: OnnxParserFlag) -> bool:
        """Whether a flag is set."""
        return bool(self._flags >> int(expect(OnnxParserFlag, flag, "OnnxParser.get_flag: flag")) & 1)

    def set_builder_config(self, builder_config: IBuilderConfig) -> bool:
        """Tell the parser of the config that the network will be built with; True."""
        self._config = expect(IBuilderConfig, builder_config, "OnnxParser.set_builder_config: builder_config")
        return True

    def get_used_vc_plugin_libraries(self) -> list[str]:
        """The libraries of plugins that the model's version-compatible engine needs: none, plugins here are Python."""
        return []

    # ------------------------------------------------------------------ what was parsed
    def get_layer_output_tensor(self, name: str, i: int) -> ITensor | None:
        """An output of the layer that an ONNX node of that name became; None where there is none."""
        expect(str, name, "OnnxParser.get_layer_output_tensor: name")
        layer = next((layer for layer in self._network if layer.name == name), None)
        return None if layer is None else layer.get_output(i)

    def get_refit_map(self) -> tuple[list[str], list[str], list[WeightsRole]]:
        """What the weights of the parsed models are to layers (7.2): parallel lists of weight names, layer names, roles.

        A weight that several layers read comes again as `name_1` and so on. Kernels are where the model has them as TensorRT does (Conv,
        ConvTranspose, Gemm with transB); all others are CONSTANT of a layer by the weight's own name, and never pre-transposed.
        """
        if self._walk is None:
            return [], [], []
        found = self._walk.refit_map
        return list(found.names), list(found.layers), list(found.roles)

    # ------------------------------------------------------------------ inside
    def _read(self, model: Any, path: str | None) -> tuple[onnx.ModelProto, Path | None] | None:
        self._errors = []
        try:
            return model_of(model, path)
        except ModelError as error:
            self._fail("parse", ErrorCode.MODEL_DESERIALIZE_FAILED, str(error))
            return None

    def _parse(self, model: onnx.ModelProto, folder: Path | None, given: dict[str, np.ndarray[Any, Any]]) -> bool:
        if self._network.has_implicit_batch_dimension:
            flag = NetworkDefinitionCreationFlag.EXPLICIT_BATCH
            text = f"This version of the ONNX parser only supports networks with an explicit batch dimension ({flag})."
            self._fail("parse", ErrorCode.INVALID_VALUE, text)
            return False
        refused = [flag.name for flag in _NO_DLA if self.get_flag(flag)]
        if refused:
            self._fail("parse", ErrorCode.INVALID_VALUE, f"{', '.join(refused)}: there is no deep-learning accelerator on this machine.")
            return False
        walk = self._walk = Walk(
            self._network, model, folder, given, PluginFallback(self._network, self._reporter, self._flags), self._reporter.warning
        )
        try:
            failed = walk.run()
        except Error as error:
            self._fail("parseGraph", ErrorCode.INVALID_GRAPH, str(error))
            return False
        if failed is None:
            return True
        index, node, first = failed
        # The survey goes on where the walk had to stop, so that all that is wrong is said at once.
        try:
            self._survey(model, folder)
        except Error as other:
            self._reporter.verbose(f"No more is known of the model: {other}")
        if not any(e.node() == index for e in self._errors):
            reasons = first.problems if isinstance(first, UnsupportedOpError) and first.problems else (str(first),)
            kind = domain_of(node.domain)
            self._node_error(model, NodeSupport(index, node.name, node.op_type, kind, False, False, tuple(reasons)))
        return False

    def _survey(self, model: onnx.ModelProto, folder: Path | None) -> Sequence[NodeSupport]:
        """What can be imported of each node; errors for those that cannot."""
        plugins = PluginFallback(self._network, self._reporter, self._flags)
        found = []
        for node in dovetail.survey(model if folder is None else _with_data(model, folder)):
            if node.supported or plugins.knows(model.graph.node[node.index]):
                found.append(NodeSupport(node.index, node.name, node.op, node.domain, True, node.blocked))
                continue
            self._node_error(model, node)
            found.append(node)
        return found

    def _node_error(self, model: onnx.ModelProto, node: NodeSupport) -> None:
        functions = {(domain_of(f.domain), f.name) for f in model.functions}
        proto = model.graph.node[node.index]
        own_name = proto.name or node.name
        for reason in node.reasons:
            inner = _PROBLEM.match(reason)
            name, op, cause = (inner["name"], inner["op"].rpartition("::")[2], inner["cause"]) if inner else (own_name, node.op, reason)
            stack = [node.op] if (node.domain, node.op) in functions else []
            if not stack and op == node.op:
                name = own_name
            missing = cause.startswith(NO_WAY[0])
            func = "checkFallbackPluginImporter" if missing else "parseNode"
            code = ErrorCode.UNSUPPORTED_NODE if missing else code_of(cause, [a.name for a in proto.attribute])
            text = f"{_NO_PLUGIN} ({cause})" if missing else cause
            self._add(ParserError(code, text, func, node.index, name, op, stack))

    def _fail(self, func: str, code: ErrorCode, text: str) -> None:
        self._add(ParserError(code, text, func))

    def _add(self, error: ParserError) -> None:
        self._errors.append(error)
        self._reporter.error(str(error))


def _with_data(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The model with its external data inside."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.load_external_data_for_model(copy, str(folder))
    return copy
