"""Speed of the CPU contraction templates, as a share of the FMA peak measured on the spot.

    python bench/kernels_cpu.py [conv] [gemm] [depthwise] [winograd] [--isa avx2] [--threads 2] [--seconds 0.3]

Times are minima over many calls (CPU time of the thread where there is one), so that other load on the machine
matters little; buffers are warm. `--tiles` races ROWSxVECTORS (gemm, conv), VECTORSxBLOCK (winograd) or PIXELS (depthwise).
"""

from __future__ import annotations

import argparse
import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dovetail.codegen import vmath
from dovetail.codegen.compiler import compile_c
from dovetail.codegen.kernel import ENTRY, entry_name
from dovetail.codegen.target import Target
from dovetail.kernels.cpu import conv, gemm, pad, window, winograd
from dovetail.kernels.cpu.contraction import Axis, Panels
from dovetail.kernels.cpu.conv import ConvConfig
from dovetail.kernels.cpu.epilogue import Epilogue
from dovetail.kernels.cpu.gemm import GemmConfig
from dovetail.kernels.cpu.text import DimTable, Isa


def aligned(*shape: int) -> np.ndarray:
    """Random floats at a page boundary."""
    n = int(np.prod(shape))
    raw = np.empty(n + 1024, np.float32)
    start = (-raw.ctypes.data % 4096) // 4
    view = raw[start : start + n]
    view[:] = np.random.default_rng(0).standard_normal(n, np.float32)
    return view


def bind(template: str, target: Target, buffers: Sequence[np.ndarray]) -> Callable[[int, int], None]:
    """Compile a kernel without run-time dims; return call(tid, nt)."""
    entry = entry_name(template)
    source = vmath.prelude(target) + template.replace(ENTRY, entry)
    function = getattr(ctypes.CDLL(str(compile_c(source, target))), entry)
    function.argtypes = [ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    p = (ctypes.c_void_p * len(buffers))(*(b.ctypes.data for b in buffers))
    keep = list(buffers)
    return lambda tid, nt: (function(tid, nt, p, None), keep)[0]


def fastest(call: Callable[[int, int], None], threads: int, seconds: float) -> float:
    """Shortest time of one call; with several threads, the mean over a batch of calls per thread."""
    if threads == 1:
        call(0, 1)
        best, end = 1e9, time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.thread_time()
            call(0, 1)
            best = min(best, time.thread_time() - start)
        return best
    best, end = 1e9, time.perf_counter() + seconds
    while time.perf_counter() < end:
        gate, spent = threading.Barrier(threads), []

        def work(tid: int, gate: threading.Barrier = gate, spent: list[float] = spent) -> None:
            gate.wait()
            start = time.perf_counter()
            for _ in range(8):
                call(tid, threads)
            spent.append((time.perf_counter() - start) / 8)

        team = [threading.Thread(target=work, args=(t,)) for t in range(threads)]
        for t in team:
            t.start()
        for t in team:
            t.join()
        best = min(best, max(spent))
    return best


def peak(target: Target, seconds: float) -> float:
    """FMA flop/s of one core: independent accumulators, operands in registers."""
    v, lanes = target.vector_type, target.vector_floats
    n = 20 if target.n_registers == 32 else 10
    body = "".join(f"c{i} = a * b + c{i}; __asm__ volatile(\"\" : \"+v\"(c{i}));" for i in range(n))
    text = (
        "void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {"
        f"{v} a = dt_load_{v}(p[0]), b = dt_load_{v}(p[0]), "
        + ", ".join(f"c{i} = a" for i in range(n))
        + f"; for (int64_t k = 0; k < 100000; k++) {{ {body} }}"
        + "".join(f"a = a + c{i};" for i in range(n))
        + f"dt_store_{v}(p[0], a); }}"
    )
    call = bind(text.replace('"+v"', '"+x"') if target.n_registers == 16 else text, target, [aligned(64)])
    return 2.0 * n * lanes * 100000 / fastest(call, 1, seconds)


def bias_relu(isa: Isa) -> Epilogue:
    """max(acc + bias, 0)."""
    v = isa.vector
    return Epilogue(1, 1, lambda acc, e: ([f"{v} y = dt_max_{v}({acc} + {e[0]}, dt_set_{v}(0.0f));"], ["y"]))


def bias_gelu(isa: Isa) -> Epilogue:
    """gelu(acc + bias), out of line."""
    v = isa.vector
    text = f"{v} x = ACC + BIAS; {v} y = x * 0.5f * (dt_erf_{v}(x * 0.70710678f) + 1.0f);"
    return Epilogue(1, 1, lambda acc, e: ([text.replace("ACC", acc).replace("BIAS", e[0])], ["y"]), True)


def gemm_call(
    target: Target, m: int, n: int, k: int, tile: tuple[int, int] | None, gelu: bool
) -> tuple[Callable[[int, int], None], tuple[int, int]]:
    """A bound GEMM with bias and an activation, and its tile."""
    isa = Isa.of(target)
    rows, vectors = tile or gemm.default_tile(isa, m, n, k, k)
    epilogue = bias_gelu(isa) if gelu else bias_relu(isa)
    config = GemmConfig(isa, (), Axis(m, k, (n,), (0,)), n, k, rows, vectors, (1,), epilogue)
    buffers = [aligned(m, k), aligned(k * int(config.panels.packed_columns)), aligned(m, n), aligned(n)]
    return bind(gemm.emit(config, DimTable()), target, buffers), (rows, vectors * isa.lanes)


def conv_call(
    target: Target, h: int, c: int, f: int, k: int, s: int, tile: tuple[int, int] | None = None
) -> tuple[Callable[[int, int], None], Callable[[int, int], None] | None, tuple[int, int]]:
    """(bound convolution, bound padding copy or None, tile) of a square image at batch 1."""
    isa, p = Isa.of(target), k // 2
    out = ((h + 2 * p - k) // s + 1,) * 2
    y, where = pad.dense(out, f), pad.dense((h, h), c)
    copying = pad.plan(1, (h, h), c, ((p, p), (p, p)), where, (k, k), (s, s), f)
    x = where if copying is None else copying.y
    step = 1 if copying is not None and copying.steps else s
    merged = k == 1 and step == 1
    rows, vectors = tile or conv.default_tile(isa, out, f, (step, step), x, k * k * c, merged)
    config = ConvConfig(
        isa, 1, c, f, 1, (k, k), (step, step), (1, 1), out, x, (y,), rows, vectors,
        (conv.Image(0, (0, 0)),), (1,), bias_relu(isa),
    )  # fmt: skip
    block = k * k * c * int(Panels(f, vectors, isa.lanes).packed_columns)
    source = aligned(h * h * c)
    buffer = source if copying is None else aligned(int(copying.y.batch))
    call = bind(conv.emit(config, DimTable()), target, [buffer, aligned(block), aligned(out[0] * out[1] * f), aligned(f)])
    copy = None if copying is None else bind(pad.emit(copying, DimTable()), target, [source, buffer])
    return call, copy, (rows, vectors * isa.lanes)


def winograd_call(target: Target, h: int, c: int, f: int, vectors: int, block: int) -> Callable[[int, int], None]:
    """A bound 3x3 Winograd convolution of a square image at batch 1."""
    isa = Isa.of(target)
    x, y = pad.dense((h, h), c), pad.dense((h, h), f)
    tiles = (-(-h // 4)) ** 2
    config = winograd.WinogradConfig(
        isa, 1, c, f, ((1, 1), (1, 1)), (h, h), (h, h), x, (y,), vectors,
        block or winograd.default_block(c, tiles), (conv.Image(0, (0, 0)),), (1,), bias_relu(isa),
    )  # fmt: skip
    buffers = [
        aligned(h * h * c), aligned(36 * c * int(config.panels.packed_columns)), aligned(h * h * f), aligned(f),
        aligned(int(config.workspace_bytes) // 4),
    ]  # fmt: skip
    return bind(winograd.emit(config, DimTable()), target, buffers)


def depthwise_call(target: Target, h: int, c: int, k: int, s: int, pixels: int) -> Callable[[int, int], None]:
    """A bound depthwise convolution of a square image at batch 1."""
    isa, p = Isa.of(target), k // 2
    out = (h + 2 * p - k) // s + 1
    config = window.WindowConfig(
        isa, window.DEPTHWISE, 1, c, (k, k), (s, s), (1, 1), ((p, p), (p, p)), (h, h), (out, out), pad.dense((h, h), c),
        (pad.dense((out, out), c),), pixels or window.default_pixels(isa, window.DEPTHWISE, (k, k)),
        (conv.Image(0, (0, 0)),), (1,), epilogue=bias_relu(isa),
    )  # fmt: skip
    blocks = -(-c // isa.lanes) * isa.lanes
    buffers = [aligned(h * h * c), aligned(k * k * blocks), aligned(out * out * c), aligned(c)]
    return bind(window.emit(config, DimTable()), target, buffers)


# (image, channels, kernel, stride): layers of MobileNetV2, MobileNetV3 and EfficientNet
DEPTHWISE = [
    (112, 16, 3, 2), (112, 32, 3, 1), (56, 88, 3, 2), (28, 96, 3, 1), (28, 96, 5, 2), (14, 240, 5, 1), (14, 120, 5, 1),
    (7, 576, 5, 1), (56, 144, 3, 1), (14, 672, 5, 1),
]  # fmt: skip


# (image, channels, filters, kernel, stride): the distinct layers of ResNet-50
RESNET = [
    (224, 3, 64, 7, 2), (56, 64, 64, 1, 1), (56, 64, 64, 3, 1), (56, 64, 256, 1, 1), (56, 256, 64, 1, 1),
    (56, 256, 128, 1, 1), (56, 128, 128, 3, 2), (28, 128, 512, 1, 1), (56, 256, 512, 1, 2), (28, 512, 128, 1, 1),
    (28, 128, 128, 3, 1), (28, 512, 256, 1, 1), (28, 256, 256, 3, 2), (14, 256, 1024, 1, 1), (28, 512, 1024, 1, 2),
    (14, 1024, 256, 1, 1), (14, 256, 256, 3, 1), (14, 1024, 512, 1, 1), (14, 512, 512, 3, 2), (7, 512, 2048, 1, 1),
    (14, 1024, 2048, 1, 2), (7, 2048, 512, 1, 1), (7, 512, 512, 3, 1),
]  # fmt: skip
# (m, n, k, gelu)
GEMMS = [
    (128, 768, 768, False), (128, 3072, 768, True), (128, 768, 3072, False), (384, 768, 768, False),
    (8, 1024, 1024, False), (1, 1000, 2048, False), (1, 768, 768, False), (1, 4096, 4096, False),
]  # fmt: skip


def main() -> None:
    """Print one line per layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["conv", "gemm"])
    parser.add_argument("--isa", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--tiles", default="", help="configurations to race, separated by commas")
    options = parser.parse_args()
    target, nt = Target.parse(options.isa), options.threads
    top = peak(target, options.seconds) * nt
    print(f"{target}: FMA peak {top / 1e9:.1f} GFLOP/s for {nt} thread(s)")
    given = [tuple(map(int, t.split("x"))) for t in options.tiles.split(",") if t]
    races: list[Any] = [None, *given]
    if "winograd" in options.what:
        races = given or [(2, 0)]
    if "depthwise" in options.what:
        races = given or [(0,)]
    if "conv" in options.what:
        for h, c, f, k, s in RESNET:
            flops = 2.0 * (-(-h // s)) ** 2 * c * f * k * k
            texts = []
            for tile in races:
                call, copy, shape = conv_call(target, h, c, f, k, s, tile)
                t = fastest(call, nt, options.seconds)
                extra = f" + copy {fastest(copy, nt, 0.05) / t * 100:.1f}%" if copy and tile is None else ""
                texts.append(f"{shape[0]}x{shape[1]} {t * 1e6:7.0f} us {flops / t / top * 100:5.1f}%{extra}")
            print(f"conv {k}x{k}/{s} {h}x{h} {c}->{f}: " + " | ".join(texts), flush=True)
    if "winograd" in options.what:
        for h, c, f in (r[:3] for r in RESNET if r[3:] == (3, 1)):
            flops = 2.0 * h * h * c * f * 9
            texts = []
            for vectors, block in races or [None]:
                t = fastest(winograd_call(target, h, c, f, vectors, block), nt, options.seconds)
                texts.append(f"vectors {vectors} block {block or 'default'} {t * 1e6:7.0f} us {flops / t / top * 100:5.1f}%")
            print(f"winograd {h}x{h} {c}->{f}: " + " | ".join(texts), flush=True)
    if "depthwise" in options.what:
        for h, c, k, s in DEPTHWISE:
            out = -(-h // s)
            flops, bytes_ = 2.0 * out * out * c * k * k, 4.0 * c * (h * h + out * out)
            texts = []
            for (pixels,) in races:
                t = fastest(depthwise_call(target, h, c, k, s, pixels), nt, options.seconds)
                texts.append(f"{pixels or 'default'} {t * 1e6:7.1f} us {flops / t / top * 100:5.1f}% {bytes_ / t / 1e9:.0f} GB/s")
            print(f"depthwise {k}x{k}/{s} {h}x{h} {c}: " + " | ".join(texts), flush=True)
    if "gemm" in options.what:
        for m, n, k, gelu in GEMMS:
            texts = []
            for tile in races:
                run, shape = gemm_call(target, m, n, k, tile, gelu)
                t = fastest(run, nt, options.seconds)
                texts.append(
                    f"{shape[0]}x{shape[1]} {t * 1e6:7.0f} us {2.0 * m * n * k / t / top * 100:5.1f}% "
                    f"{4 * n * k / t / 1e9:.0f} GB/s"
                )
            print(f"gemm {m}x{n}x{k}{' gelu' if gelu else ''}: " + " | ".join(texts), flush=True)


if __name__ == "__main__":
    main()
