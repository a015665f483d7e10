"""Every configuration of every tactic for single products and convolutions, with weights from outside and inside the L2 cache.

    python -m bench.gpu.kernels --gemm 128,768,768 4096,3072,768
    python -m bench.gpu.kernels --resnet50 1 32 --limit 12
    python -m bench.gpu.kernels --model bert_base --batch 1 --kinds matmul attention --tactics gemm cublaslt

Candidates are compiled in parallel, run in CUDA graphs of launches back to back, and listed best first, beside torch's own bare product or
convolution for the same shape (no epilogue). `cold`: each launch has operands of its own, together beyond the L2 cache; `warm`: all
have the same. Writes OUT/kernels.json after every shape.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.gpu import suite
from bench.gpu.environment import environment, line
from bench.gpu.timing import Candidate, Graph, Memory, interleaved, use_device
from dovetail import builder
from dovetail.builder.options import BuildOptions
from dovetail.codegen.tactic import Emitted, Group, Tactic
from dovetail.codegen.target import Target
from dovetail.codegen.triton_compiler import Compiled, compile_kernels
from dovetail.core.dims import evaluate
from dovetail.device.cuda import driver
from dovetail.ir.fingerprint import fingerprint
from dovetail.tuner import measure
from dovetail.tuner.cuda_launch import Functions, calls, own_bytes
from dovetail.tuner.cuda_pool import own_addresses, span

LIBRARIES = ("cublaslt_tactic", "cudnn_tactic")
_COLD_BYTES, _MAX_SETS, _LAUNCHES = 128 << 20, 48, 24

# Height, channels, filters, kernel, stride, how often, residual.
RESNET50 = (
    (56, 64, 64, 1, 1, 1, 0), (56, 64, 64, 3, 1, 3, 0), (56, 64, 256, 1, 1, 1, 0), (56, 64, 256, 1, 1, 3, 1), (56, 256, 64, 1, 1, 2, 0),
    (56, 256, 128, 1, 1, 1, 0), (56, 128, 128, 3, 2, 1, 0), (56, 256, 512, 1, 2, 1, 0), (28, 128, 512, 1, 1, 4, 1),
    (28, 512, 128, 1, 1, 3, 0), (28, 128, 128, 3, 1, 3, 0), (28, 512, 256, 1, 1, 1, 0), (28, 256, 256, 3, 2, 1, 0),
    (28, 512, 1024, 1, 2, 1, 0), (14, 256, 1024, 1, 1, 6, 1), (14, 1024, 256, 1, 1, 5, 0), (14, 256, 256, 3, 1, 5, 0),
    (14, 1024, 512, 1, 1, 1, 0), (14, 512, 512, 3, 2, 1, 0), (14, 1024, 2048, 1, 2, 1, 0), (7, 512, 2048, 1, 1, 3, 1),
    (7, 2048, 512, 1, 1, 2, 0), (7, 512, 512, 3, 1, 2, 0),
)  # fmt: skip


TorchMaker = Callable[[int], tuple[Callable[[int], Any], int]]
"""For so many sets of weights: what runs torch's kernel on the i-th, and the bytes of one set."""


@dataclass
class Shape:
    """A group to time: its name, the group with the tactics that are able, how often it occurs, torch's bare counterpart."""

    name: str
    group: Group
    able: list[Tactic]
    count: int = 1
    torch: TorchMaker | None = None


@dataclass
class Entry:
    """A configuration and what became of it; times in microseconds."""

    name: str
    emitted: Emitted
    group: Group
    cold: float = math.nan
    warm: float = math.nan
    reason: str = ""
    graphs: dict[str, tuple[Graph, int]] = field(default_factory=dict)


class _Captured(Exception):
    """Ends a build once its groups are known."""


def groups_of(
    model: onnx.ModelProto, precision: str, target: str, shapes: Mapping[str, Sequence[int]], images: bool
) -> list[tuple[Group, list[Tactic]]]:
    """The groups of a model, laid out as an engine has them, with the tactics that compute each."""
    found: list[tuple[Group, list[Tactic]]] = []

    def choose(groups: Sequence[tuple[Group, list[Tactic]]], target: Target, *rest: Any) -> Any:
        found.extend(groups)
        raise _Captured

    io = {"fp16": "f16", "bf16": "bf16"}.get(precision, "f32")
    names = {
        v.name: f"{io}:channels_last" if images and len(v.type.tensor_type.shape.dim) == 4 else io
        for v in (*model.graph.input, *model.graph.output) if v.type.tensor_type.elem_type == TensorProto.FLOAT
    }  # fmt: skip
    options = BuildOptions("cuda", target, precision, shapes, verify="off", io_formats=names)
    with contextlib.suppress(_Captured):
        builder.build(model, options, choose=choose)
    return found


def gemm_model(m: int, n: int, k: int) -> onnx.ModelProto:
    """Product, bias, ReLU."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((k, n)) / math.sqrt(k), "b": rng.standard_normal(n)}
    steps = (("MatMul", ["x", "w"], "p"), ("Add", ["p", "b"], "s"), ("Relu", ["s"], "y"))
    nodes = [helper.make_node(op, inputs, [output]) for op, inputs, output in steps]
    return _model(nodes, weights, {"x": (m, k)}, {"y": (m, n)})


def conv_model(batch: int, size: int, channels: int, filters: int, kernel: int, stride: int, residual: bool) -> onnx.ModelProto:
    """Convolution, bias, perhaps a residual, ReLU."""
    rng = np.random.default_rng(0)
    shape = (filters, channels, kernel, kernel)
    weights = {"w": rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])), "b": rng.standard_normal(filters)}
    out = (size - 1) // stride + 1
    pads = [kernel // 2] * 4
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[stride] * 2, pads=pads, kernel_shape=[kernel] * 2)]
    inputs = {"x": (batch, channels, size, size)}
    if residual:
        nodes.append(helper.make_node("Add", ["c", "r"], ["s"]))
        inputs["r"] = (batch, filters, out, out)
    nodes.append(helper.make_node("Relu", ["s" if residual else "c"], ["y"]))
    return _model(nodes, weights, inputs, {"y": (batch, filters, out, out)})


def _model(
    nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Any], inputs: Mapping[str, Sequence[int]], outputs: Mapping[str, Sequence[int]]
) -> onnx.ModelProto:
    def infos(values: Mapping[str, Sequence[int]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(k, TensorProto.FLOAT, list(s)) for k, s in values.items()]

    tensors = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in weights.items()]
    graph = helper.make_graph(list(nodes), "kernel", infos(inputs), infos(outputs), tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def shapes_of(args: argparse.Namespace, target: str) -> Iterator[Shape]:
    """What the command line asks for."""
    for text in args.gemm:
        m, n, k = (int(v) for v in text.split(","))
        model = gemm_model(m, n, k)
        for group, able in _contractions(groups_of(model, args.precision, target, {"x": (m, k)}, False)):
            yield Shape(f"gemm {m}x{n}x{k}", group, able, 1, _torch_gemm(m, n, k))
    for batch in args.resnet50:
        for size, channels, filters, kernel, stride, count, residual in RESNET50:
            model = conv_model(batch, size, channels, filters, kernel, stride, bool(residual))
            name = f"b{batch} {size} {channels}->{filters} {kernel}x{kernel}/{stride}{' +res' if residual else ''}"
            for group, able in _contractions(groups_of(model, args.precision, target, {}, True)):
                yield Shape(name, group, able, count, _torch_conv(batch, size, channels, filters, kernel, stride))
    if args.model:
        entry = suite.MODELS[args.model]
        model = entry.onnx(args.batch)
        distinct: dict[str, Shape] = {}
        for group, able in groups_of(model, args.precision, target, entry.shapes(model, args.batch), entry.image):
            if group.kind not in args.kinds:
                continue
            key = fingerprint(group.body, {}) + ";".join(str(v.type) for v in (*group.inputs, *group.outputs))
            if key in distinct:
                distinct[key].count += 1
            else:
                shapes = " ".join("x".join(map(str, v.tensor.shape)) for v in group.outputs)
                distinct[key] = Shape(f"{group.kind} {group.node.where} -> {shapes}", group, able)
        yield from distinct.values()


def _contractions(groups: Sequence[tuple[Group, list[Tactic]]]) -> list[tuple[Group, list[Tactic]]]:
    """Without the copies at the borders of a model of one layer."""
    return [(group, able) for group, able in groups if group.kind in ("conv", "matmul")]


def _torch_gemm(m: int, n: int, k: int) -> TorchMaker:
    def make(sets: int) -> tuple[Callable[[int], Any], int]:
        import torch

        x = torch.randn(m, k, device="cuda", dtype=torch.float16)
        weights = [torch.randn(k, n, device="cuda", dtype=torch.float16) / math.sqrt(k) for _ in range(sets)]
        y = torch.empty(m, n, device="cuda", dtype=torch.float16)
        return lambda i: torch.matmul(x, weights[i], out=y), 2 * k * n

    return make


def _torch_conv(batch: int, size: int, channels: int, filters: int, kernel: int, stride: int) -> TorchMaker:
    def make(sets: int) -> tuple[Callable[[int], Any], int]:
        import torch

        torch.backends.cudnn.benchmark = True

        def image(*shape: int) -> Any:
            return torch.randn(*shape, device="cuda", dtype=torch.float16).to(memory_format=torch.channels_last)

        x = image(batch, channels, size, size)
        weights = [image(filters, channels, kernel, kernel) for _ in range(sets)]
        pad = kernel // 2
        return lambda i: torch.nn.functional.conv2d(x, weights[i], stride=stride, padding=pad), 2 * filters * channels * kernel * kernel

    return make


def entries_of(shape: Shape, target: Target, limit: int, tactics: Sequence[str]) -> list[Entry]:
    """The candidates of a shape, in order of preference."""
    found: list[Entry] = []
    for tactic in shape.able:
        if tactics and tactic.name not in tactics:
            continue
        for config in list(tactic.configs(shape.group, target))[:limit]:
            candidate = measure.Candidate(tactic, tuple(config))
            group, emitted = candidate.emit(shape.group, target)
            found.append(Entry(candidate.name, emitted, group))
    return found


def time_shape(shape: Shape, entries: list[Entry], machine: Mapping[str, Compiled | str], rounds: int) -> dict[str, Any]:
    """Fill in the times; returns torch's."""
    gpu = driver(0)
    functions = Functions(gpu, machine)
    memory = Memory()
    candidates: list[Candidate] = []
    by_name: dict[str, tuple[Entry, str]] = {}
    flops = max((sum(evaluate(s.kernel.flops, {}) for s in e.emitted.steps) for e in entries), default=0)
    operands = _Operands(memory, max((_sets(e, True) * _set_bytes(e) for e in entries), default=256))
    for entry in entries:
        entry.reason = _refused(entry, machine)
        if entry.reason:
            continue
        for mode in ("cold", "warm"):
            try:
                graph, launches = _capture(entry, functions, memory, operands, cold=mode == "cold")
            except Exception as error:
                entry.reason = f"{type(error).__name__}: {error}"[:300]
                break
            entry.graphs[mode] = graph, launches
            name = f"{entry.name} {mode}"
            by_name[name] = (entry, mode)
            candidates.append(graph.candidate(name))
    reference: dict[str, Any] = {}
    if shape.torch is not None:
        for mode in ("cold", "warm"):
            try:
                candidates.append(_torch_candidate(shape.torch, f"torch {mode}", cold=mode == "cold"))
            except Exception as error:
                reference[f"{mode}_error"] = f"{type(error).__name__}: {error}"[:300]

    def failed(name: str, error: Exception) -> None:
        if name in by_name:
            by_name[name][0].reason = f"{type(error).__name__}: {error}"[:300]

    for name, times in interleaved(candidates, rounds=rounds, round_ms=1.0, failed=failed).items():
        if name in by_name:
            entry, mode = by_name[name]
            setattr(entry, mode, times.median * 1e3 / entry.graphs[mode][1])
        else:
            reference[name.removeprefix("torch ")] = times.median * 1e3 / _LAUNCHES
    for entry in entries:
        for graph, _ in entry.graphs.values():
            graph.close()
    memory.close()
    reference["flops"] = flops
    return reference


def _refused(entry: Entry, machine: Mapping[str, Compiled | str]) -> str:
    for step in entry.emitted.steps:
        if step.kernel.launch is None:
            continue
        compiled = machine.get(step.kernel.entry)
        if not isinstance(compiled, Compiled):
            return str(compiled or "was not compiled")[:300]
        if compiled.stack:
            return f"spills {compiled.stack} bytes a thread"
    return ""


class _Operands:
    """Memory that the candidates of a shape share, one after the other: ordinary numbers, whatever type reads them."""

    def __init__(self, memory: Memory, nbytes: int) -> None:
        # Halves of small magnitude: pairs of them are small numbers in fp32, too, and each is one in bf16.
        numbers = (np.random.default_rng(0).standard_normal(4 << 20) * 0.1).astype(np.float16).view(np.uint8)
        self.start = memory.upload(np.resize(numbers, nbytes))
        self.nbytes = nbytes
        self.at = self.start

    def take(self, nbytes: int) -> int:
        """The address of the next piece."""
        found = self.at
        self.at += -(-nbytes // 256) * 256
        assert self.at <= self.start + self.nbytes, "sets are counted before"
        return found


def _set_bytes(entry: Entry) -> int:
    return sum(-(-span(v.tensor, {}).size // 256) * 256 for v in (*entry.group.inputs, *entry.group.outputs))


def _sets(entry: Entry, cold: bool) -> int:
    return max(2, min(_MAX_SETS, -(-_COLD_BYTES // _set_bytes(entry)))) if cold else 1


def _capture(entry: Entry, functions: Functions, memory: Memory, operands: _Operands, *, cold: bool) -> tuple[Graph, int]:
    """A graph of launches; each operand set of a cold one has memory of its own."""
    group, emitted = entry.group, entry.emitted
    values = [*group.inputs, *group.outputs]
    own = own_bytes(emitted, functions, {})
    total = sum(-(-s // 256) * 256 for s in own)
    block, zeros = memory.allocate(total), memory.upload(np.zeros(total, np.uint8))
    addresses = own_addresses(emitted, own, block, zeros)
    operands.at = operands.start
    ready = []
    for _ in range(_sets(entry, cold)):
        at = [operands.take(place.size) + place.origin for place in (span(v.tensor, {}) for v in values)]
        ready.append(calls(emitted, functions, {}, at[: len(group.inputs)], at[len(group.inputs) :], addresses))
    with functions.driver.active():
        stream = functions.driver.create_stream()
        for call in ready[0]:
            call(stream)
        functions.driver.synchronize(stream)
        functions.driver.destroy_stream(stream)
    launches = max(len(ready), _LAUNCHES)

    def record(stream: int) -> None:
        for number in range(launches):
            for call in ready[number % len(ready)]:
                call(stream)

    return Graph(record), launches


def _torch_candidate(make: TorchMaker, name: str, *, cold: bool) -> Candidate:
    import torch

    _, nbytes = make(1)
    sets = max(2, min(_LAUNCHES, -(-_COLD_BYTES // nbytes))) if cold else 1
    function, _ = make(sets)
    with torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for i in range(sets):
                function(i)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(_LAUNCHES):
                function(i % sets)
    return Candidate(name, graph.replay, int(torch.cuda.current_stream().cuda_stream))


def show(shape: Shape, entries: Sequence[Entry], reference: Mapping[str, Any], top: int) -> str:
    """The best configurations of a shape as text."""
    timed = sorted((e for e in entries if not math.isnan(e.cold)), key=lambda e: e.cold)
    flops = reference.get("flops", 0)
    told = ", ".join(f"{m} {reference[m]:.2f}" for m in ("cold", "warm") if m in reference) or "–"
    lines = [f"{shape.name} (x{shape.count}, {flops / 1e9:.3g} GFLOP): torch bare {told} us"]
    for entry in timed[:top]:
        rate = f"{flops / entry.cold / 1e6:.0f} TFLOP/s" if flops else ""
        lines.append(f"    {entry.cold:8.2f} cold {entry.warm:8.2f} warm  {entry.name}  {rate}")
    best: dict[str, Entry] = {}
    for entry in timed:
        best.setdefault(entry.name.split(" ")[0], entry)
    lines += [f"    {e.cold:8.2f} cold {e.warm:8.2f} warm  best of {name}: {e.name}" for name, e in best.items() if e not in timed[:top]]
    reasons: dict[str, int] = {}
    for entry in entries:
        if entry.reason:
            reasons[entry.reason] = reasons.get(entry.reason, 0) + 1
    return "\n".join([*lines, *(f"    out {n} times: {r}" for r, n in reasons.items())])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.kernels", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--gemm", nargs="*", default=[], metavar="M,N,K")
    parser.add_argument("--resnet50", nargs="*", type=int, default=[], metavar="BATCH", help="its convolutions at these batch sizes")
    parser.add_argument("--model", default="", choices=["", *suite.MODELS], help="the distinct groups of a model of the suite")
    parser.add_argument("--batch", type=int, default=1, help="of --model")
    parser.add_argument("--kinds", nargs="+", default=["conv", "matmul", "attention"], help="kinds of groups of --model")
    parser.add_argument("--precision", default="fp16", choices=("fp16", "bf16", "fp32", "tf32"))
    parser.add_argument("--tactics", nargs="*", default=[], help="only these")
    parser.add_argument("--limit", type=int, default=24, help="configurations per tactic")
    parser.add_argument("--libraries", action="store_true", help="cuBLASLt and cuDNN compete, too")
    parser.add_argument("--top", type=int, default=4, help="configurations shown per shape")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--time-limit", type=float, default=520.0, help="seconds after which no further shape is begun")
    parser.add_argument("--out", type=Path, default=Path("build/bench-gpu"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    use_device()
    where = environment()
    print(line(where), flush=True)
    if args.libraries:
        for name in LIBRARIES:
            importlib.import_module(f"dovetail.kernels.cuda.{name}")
    start = time.monotonic()
    capability = max(c for c in (80, 86, 89, 90) if c <= driver(0).properties.capability)
    target = Target.parse(f"cuda:sm_{capability}")
    shapes = list(shapes_of(args, target.name))
    found = [entries_of(shape, target, args.limit, args.tactics) for shape in shapes]
    kernels = [step.kernel for entries in found for entry in entries for step in entry.emitted.steps]
    machine = compile_kernels(kernels, target)
    seconds = time.monotonic() - start
    print(f"{len(shapes)} shapes, {sum(map(len, found))} candidates, {len(machine)} kernels compiled, {seconds:.0f} s", flush=True)
    rows: list[dict[str, Any]] = []
    totals = {"ours": 0.0, "torch": 0.0}
    for shape, entries in zip(shapes, found, strict=True):
        if time.monotonic() - start > args.time_limit:
            print(f"{shape.name}: left out, {args.time_limit:g} s are over")
            continue
        try:
            reference = time_shape(shape, entries, machine, args.rounds)
        except Exception as error:
            print(f"{shape.name}: {type(error).__name__}: {error}", flush=True)
            continue
        print(show(shape, entries, reference, args.top), flush=True)
        best = min((e.cold for e in entries if not math.isnan(e.cold)), default=math.nan)
        totals["ours"] += shape.count * best
        totals["torch"] += shape.count * reference.get("cold", math.nan)
        rows.append({
            "shape": shape.name, "count": shape.count, "torch": reference,
            "candidates": [{"name": e.name, "cold_us": e.cold, "warm_us": e.warm, "reason": e.reason} for e in entries],
        })  # fmt: skip
        (args.out / "kernels.json").write_text(json.dumps({"environment": where, "rows": rows}, indent=1))
    print(f"sum over all occurrences, cold: ours {totals['ours'] / 1e3:.3f} ms, torch bare {totals['torch'] / 1e3:.3f} ms; "
          f"{time.monotonic() - start:.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
