"""Peers: other runtimes behind one function, each pinned to fp32 and to a number of threads.

Every peer is called through its own Python API with contiguous NumPy inputs as the model declares them, so layout
conversion and copies of outputs are inside. Symbolic dimensions are fixed to the sizes of the inputs, which lets a
peer specialise as far as it can.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from dovetail.core.errors import UsageError

Feeds = Mapping[str, np.ndarray[Any, Any]]
Run = Callable[[], object]


def onnxruntime_run(model: onnx.ModelProto, feeds: Feeds, threads: int) -> Run:
    """ONNX Runtime's CPU provider at its highest optimisation level."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    for name, size in _sizes(model, feeds).items():
        options.add_free_dimension_override_by_name(name, size)
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    given = dict(feeds)
    return lambda: session.run(None, given)


def openvino_run(model: onnx.ModelProto, feeds: Feeds, threads: int) -> Run:
    """OpenVINO's CPU plugin with the latency hint, pinned to f32."""
    import io

    import openvino as ov

    core = ov.Core()
    network = core.read_model(io.BytesIO(model.SerializeToString()))
    by_name = {name: port for port in network.inputs for name in port.get_names()}
    network.reshape({by_name[name]: list(x.shape) for name, x in feeds.items() if name in by_name})
    compiled = core.compile_model(
        network,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        },
    )
    request = compiled.create_infer_request()
    given = {name: x for name, x in feeds.items() if name in by_name}
    return lambda: request.infer(given, share_inputs=True)


PEERS: dict[str, Callable[[onnx.ModelProto, Feeds, int], Run]] = {
    "onnxruntime": onnxruntime_run,
    "openvino": openvino_run,
}


def _sizes(model: onnx.ModelProto, feeds: Feeds) -> dict[str, int]:
    """Size of each named dimension of the model's inputs."""
    sizes: dict[str, int] = {}
    for value in model.graph.input:
        if value.name in feeds:
            for dim, size in zip(value.type.tensor_type.shape.dim, feeds[value.name].shape, strict=False):
                if dim.dim_param:
                    sizes[dim.dim_param] = size
    return sizes


def parse(text: str) -> list[str]:
    """The peer names in a comma-separated list.

    Raises:
        UsageError: unknown peer, or one that is not installed.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PEERS:
            raise UsageError(f"--vs: got {name!r}, expected some of {', '.join(PEERS)}")
        if version(name) is None:
            raise UsageError(f"--vs: {name} is not installed; install it with: pip install {name}")
    return names


def version(name: str) -> str | None:
    """The installed version of a peer; None if it is missing."""
    if importlib.util.find_spec(name) is None:
        return None
    return importlib.metadata.version(name)
