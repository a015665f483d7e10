"""The models of the GPU suite: as ONNX (seeded, without torch) and as the peers' modules with the same weights where names tell.

The peers run the architecture as its own library writes it, not our graph node by node: that is what their compilers are
made for. Weights come from the ONNX initializers by name; speed does not depend on them, and the torch side's own rounding error
is measured against itself in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from models import zoo

Array = np.ndarray[Any, Any]
BERT_TOKENS = 128
_BERT_PARTS = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense",
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """One model of the suite.

    Attributes:
        name: what the command line calls it.
        label: what tables call it.
        zoo: its name in the zoo.
        image: whether its input is an image, NCHW float; else token ids.
        make: the torch module with weights of its own.
        targets_ms: by batch, what issue and documentation ask for.
    """

    name: str
    label: str
    zoo: str
    make: Callable[[], Any]
    image: bool = True
    targets_ms: Mapping[int, float] | None = None

    def onnx(self, batch: int) -> onnx.ModelProto:
        """The model for `batch` samples."""
        model = zoo.load(self.zoo)
        return model if self.image else rebatched(model, batch)

    def shapes(self, model: onnx.ModelProto, batch: int) -> dict[str, list[int]]:
        """The shape of each input at a batch size."""
        return {k: list(v.shape) for k, v in zoo.inputs(model, batch=batch).items()}

    def torch(self, model: onnx.ModelProto) -> tuple[Any, int, int]:
        """(the torch module in eval mode on the CPU, parameters taken from the ONNX model, parameters it has)."""
        module = self.make().eval()
        state = module.state_dict()
        found = _bert_state(model) if not self.image else initializers(model)
        taken = {k: found[k] for k, v in state.items() if k in found and tuple(found[k].shape) == tuple(v.shape)}
        import torch

        module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in taken.items()}, strict=False)
        counted = [k for k in state if not k.endswith(("num_batches_tracked", "position_ids", "token_type_ids"))]
        return module, sum(k in taken for k in counted), len(counted)


def _vision(name: str) -> Callable[[], Any]:
    def make() -> Any:
        import torchvision

        return getattr(torchvision.models, name)(weights=None)

    return make


def _bert() -> Any:
    import torch
    from transformers import BertConfig, BertModel

    inner = BertModel(BertConfig(), add_pooling_layer=False)

    class Hidden(torch.nn.Module):
        """BERT's last hidden state, as the ONNX model gives it."""

        def __init__(self) -> None:
            super().__init__()
            self.m = inner

        def forward(self, ids: Any) -> Any:
            return self.m(ids, return_dict=False)[0]

    return Hidden()


MODELS = {
    m.name: m
    for m in (
        Model("resnet50", "ResNet-50", "torchvision_resnet50", _vision("resnet50"), targets_ms={1: 0.28, 32: 1.25}),
        Model("mobilenet_v3_small", "MobileNetV3-small", "torchvision_mobilenet_v3_small", _vision("mobilenet_v3_small"),
              targets_ms={1: 0.20, 32: 0.45}),
        Model("efficientnet_b0", "EfficientNet-B0", "torchvision_efficientnet_b0", _vision("efficientnet_b0"),
              targets_ms={1: 0.33, 32: 1.3}),
        Model("vit_b_16", "ViT-B/16", "torchvision_vit_b_16", _vision("vit_b_16"), targets_ms={1: 0.50, 32: 3.0}),
        Model("bert_base", "BERT-base, 128 tokens", "transformers_bert_base_opset23", _bert, image=False,
              targets_ms={1: 0.50, 32: 2.6}),
        Model("regnet_x_1_6gf", "RegNetX-1.6GF", "torchvision_regnet_x_1_6gf", _vision("regnet_x_1_6gf")),
        Model("efficientnet_v2_s", "EfficientNetV2-S (224)", "torchvision_efficientnet_v2_s", _vision("efficientnet_v2_s")),
        Model("vgg11", "VGG-11", "torchvision_vgg11", _vision("vgg11")),
    )
}  # fmt: skip
ALIASES = {
    "mobilenetv3": "mobilenet_v3_small", "mobilenet": "mobilenet_v3_small", "efficientnet": "efficientnet_b0", "vit": "vit_b_16",
    "bert": "bert_base", "regnet": "regnet_x_1_6gf", "regnetx": "regnet_x_1_6gf", "efficientnetv2": "efficientnet_v2_s", "vgg": "vgg11",
}  # fmt: skip


def parse(text: str) -> list[str]:
    """The models of a comma-separated list; "all" is the suite.

    Raises:
        ValueError: an unknown name.
    """
    if text == "all":
        return list(MODELS)
    names = [ALIASES.get(part, part) for part in text.split(",") if part]
    unknown = [n for n in names if n not in MODELS]
    if unknown:
        raise ValueError(f"models: got {', '.join(unknown)}, expected some of {', '.join(MODELS)}, or all")
    return names


def initializers(model: onnx.ModelProto) -> dict[str, Array]:
    """All initializers by name, those that exporters share by an Identity under each of their names."""
    found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def rebatched(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A BERT of one sample for `batch` samples: the shapes that its export froze say so."""
    if batch == 1:
        return model
    shapes = {node.input[1] for node in model.graph.node if node.op_type in ("Reshape", "Expand")}
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.name in shapes:
            value = np.array([batch, *value[1:]], np.int64)
        elif tensor.data_type == onnx.TensorProto.INT64 and value.ndim == 2:
            value = value.repeat(batch, axis=0)
        else:
            continue
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    del model.graph.value_info[:]
    for value_info in (*model.graph.input, *model.graph.output):
        value_info.type.tensor_type.shape.dim[0].dim_value = batch
    return model


def _bert_state(model: onnx.ModelProto) -> dict[str, Array]:
    """BERT's parameters by their names in torch: products in order, each with the Add behind it."""
    known = initializers(model)
    found = dict(known)
    users = {name: node for node in model.graph.node for name in node.input}
    products = [n for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in known]
    for index, node in enumerate(products):
        prefix = f"m.encoder.layer.{index // 6}.{_BERT_PARTS[index % 6]}"
        found[f"{prefix}.weight"] = known[node.input[1]].T
        bias = [n for n in users[node.output[0]].input if n in known]
        if bias:
            found[f"{prefix}.bias"] = known[bias[0]]
    norms = [n for n in model.graph.node if n.op_type == "LayerNormalization"]
    for index, node in enumerate(norms[1:]):
        prefix = f"m.encoder.layer.{index // 2}.{('attention.output', 'output')[index % 2]}.LayerNorm"
        found[f"{prefix}.weight"], found[f"{prefix}.bias"] = known[node.input[1]], known[node.input[2]]
    return found
