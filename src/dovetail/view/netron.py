"""The fused graph of an engine as an ONNX file for viewers, and Netron on a file."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import onnx
from onnx import helper

from dovetail.core.dtypes import STR, dtype
from dovetail.core.errors import UsageError
from dovetail.core.optional import require
from dovetail.frontend.session import DRAWING

DOMAIN = "dovetail"
"""Domain of the nodes that stand for steps."""

HOST = "127.0.0.1"
PORT = 8080


def fused_model(document: Mapping[str, Any]) -> onnx.ModelProto:
    """One node per step, with what is known of it as attributes: kernel, tactic, times, precision, ONNX nodes, bytes, shapes.

    It is for looking at, not for running: weights are named, not held. A loop or a branch is one node.

    Args:
        document: as `view.document.document` makes it.
    """
    values = document["values"]
    names = _unique(v["name"] for v in values)
    outer = [s for s in document["steps"] if s["parent"] < 0]
    titles = _unique(s["nodes"][0] if s["nodes"] else s["kernel"] for s in outer)
    nodes = [_node(s, title, document, names) for s, title in zip(outer, titles, strict=True)]
    # Of the caller's values, those that steps read are inputs; of the others, the ones that no step makes are not shown.
    made = {v for s in outer for v in s["writes"]}
    inputs = [n for n, v in enumerate(values) if v["producer"] < 0 and n not in made]
    outputs = list(dict.fromkeys(_places(document, "output")))
    info = {n: _info(names[n], v) for n, v in enumerate(values)}
    graph = helper.make_graph(
        nodes, document["title"] or "engine", [info[n] for n in inputs], [info[n] for n in outputs],
        value_info=[info[n] for n in sorted(made) if n not in outputs],
        doc_string=f"The fused graph of {document['title']} for {document['engine']['target']}: one node per step of a run.",
    )  # fmt: skip
    opsets = [helper.make_opsetid(DOMAIN, 1), helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name=document["generator"], ir_version=8)
    totals = document["totals"]
    facts = {
        DRAWING: document["title"] or "engine", "target": document["engine"]["target"],
        "certificate": document["certificate"]["text"], "weight_bytes": totals["weight_bytes"],
    }  # fmt: skip
    if totals["latency"]:
        facts["latency_ms"] = totals["latency"]["median_ms"]
    helper.set_model_props(model, {key: str(value) for key, value in facts.items()})
    return model


def _node(step: Mapping[str, Any], title: str, document: Mapping[str, Any], names: list[str]) -> onnx.NodeProto:
    values = document["values"]
    group = document["groups"][step["group"]] if step["group"] >= 0 else None
    ops = list(dict.fromkeys(group["ops"] if group and step["kind"] == "kernel" else [step["kernel"]]))
    attributes: dict[str, Any] = {
        "kind": step["kind"], "kernel": step["kernel"], "tactic": step["tactic"], "precision": step["dtype"],
        "onnx_nodes": step["nodes"], "ops": group["ops"] if group else step["ops"], "flops": step["flops"], "bytes": step["bytes"],
        "weights": step["constants"],
        "shapes": [f"{names[v]}: {_type(values[v])}" for v in [*step["reads"], *step["writes"]]],
        "config": [f"{name}={value}" for name, value in group["config"]] if group else [],
        "body": [s["kernel"] for s in document["steps"] if s["parent"] >= 0 and document["steps"][s["parent"]] is step],
    }  # fmt: skip
    if step["us"] is not None:
        attributes |= {"time_us": float(step["us"]), "time_share": float(step["share"] or 0.0)}
        if step["roof_us"] is not None and step["us"]:
            attributes |= {"roofline_share": float(step["roof_us"] / step["us"]), "bound_by": step["bound"]}
    if step["lane"]:
        attributes["lane"] = step["lane"]
    kept = {k: v for k, v in attributes.items() if v != []}
    reads, writes = ([names[v] for v in step[key]] for key in ("reads", "writes"))
    return helper.make_node("_".join(ops[:4]) or "Step", reads, writes, name=title, domain=DOMAIN, **kept)


def _type(value: Mapping[str, Any]) -> str:
    return f"{value['dtype']}{'[?]' if value['shape'] is None else value['shape']}"


def _places(document: Mapping[str, Any], kind: str) -> list[int]:
    """Values that boxes of a kind stand for in the graph."""
    return [node["value"] for node in document["views"][0]["nodes"] if node["kind"] == kind]


def _info(name: str, value: Mapping[str, Any]) -> onnx.ValueInfoProto:
    kind = dtype(value["dtype"])
    element = onnx.TensorProto.STRING if kind == STR else helper.np_dtype_to_tensor_dtype(kind.numpy)
    return helper.make_tensor_value_info(name, element, value["shape"])


def _unique(names: Iterable[str]) -> list[str]:
    """The same names, with a number where one was there before."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        count = seen[name] = seen.get(name, 0) + 1
        found.append(name if count == 1 else f"{name}#{count}")
    return found


# ------------------------------------------------------------------ Netron
def free_port(port: int | None) -> int:
    """A port to serve on: the one asked for, else the first that is free from `PORT` on.

    Raises:
        UsageError: the port that was asked for is in use, or is none.
    """
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"--port: got {port}, expected 1 to 65535")
    for candidate in [port] if port is not None else range(PORT, PORT + 50):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((HOST, candidate))
            except OSError as error:
                if port is not None:
                    raise UsageError(f"--port: got {port}, which cannot be used ({error.strerror}); pass another one, or none") from error
                continue
            return candidate
    raise UsageError(f"--port: got none, and {PORT} to {PORT + 49} are all in use; pass a free one")


def serve(name: str, content: bytes | None, port: int, browse: bool) -> str:
    """Start Netron in a thread of this process; `wait` ends it.

    Args:
        name: of the file, which is read if there is no content.

    Returns:
        The address.

    Raises:
        UsageError: Netron is not installed.
    """
    netron = require("netron", "view", "opening a graph in Netron")
    logging.getLogger().addHandler(logging.NullHandler())  # else Netron sets up logging for the whole process
    host, bound = netron.serve(name, content, address=(HOST, port), browse=browse)
    return f"http://{host}:{bound}"


def wait() -> None:
    """Serve until the user interrupts."""
    require("netron", "view", "opening a graph in Netron").wait()
