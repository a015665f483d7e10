"""Tuning on a real device: candidates that hang or reach outside their memory, in the measuring process and not in the build."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dovetail.codegen.tactic import Config, Emitted, Group, Operand, Tactic, single
from dovetail.codegen.target import CudaTarget, Target
from dovetail.core.dtypes import F16
from dovetail.device.cuda.memory import DeviceMemory
from dovetail.ir.graph import Value
from dovetail.kernels.cuda.writer import Writer
from dovetail.tuner.cuda_choose import UNABLE, CudaTuner
from dovetail.tuner.cuda_isolated import IsolatedTimer
from dovetail.tuner.timing_cache import TimingCache
from tests.gpu.harness import target
from tests.unit.cuda_harness import Body, fused


class Doing(Tactic):
    """y = 2x, by kernels that also do what their configuration says."""

    name = "doing"
    device = "cuda"
    kinds = ("doubling",)

    def supports(self, group: Group, target: Target) -> str | None:
        return None

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        return [(("does", what),) for what in ("hang", "reach", "nothing", "work")]

    def emit(self, group: Group, config: Config, target: Target) -> Emitted:
        w = Writer(CudaTarget.of(target))
        x, y = w.pointer(Operand("in", 0), group.inputs[0].tensor), w.pointer(Operand("out", 0), group.outputs[0].tensor)
        what, n = dict(config)["does"], int(group.outputs[0].tensor.size)
        more = {
            "hang": [f"while tl.load({y}, volatile=True) == tl.load({y}, volatile=True):", f"    tl.store({y} + 1, 1.0)"],
            "reach": [f"tl.store({y} + i.to(tl.int64) * 1000000007, 1.0)"],
            "work": [f"for _ in range(2000): tl.store({y} + i, tl.load({x} + i, mask=i < {n}), mask=i < {n})"],
        }
        body = [
            *w.wait, "i = tl.program_id(0) * 128 + tl.arange(0, 128)", *more.get(str(what), []),
            f"tl.store({y} + i, tl.load({x} + i, mask=i < {n}) * 2, mask=i < {n})",
        ]  # fmt: skip
        return single(w.kernel(body, grid=(-(-n // 128), 1, 1), warps=1, stages=1, tactic=self.name, config=config, bytes=4 * n))


def doubling() -> Group:
    def body(b: Body) -> Value:
        x = b.input(F16, 4096)
        return b("Add", x, x)

    return fused(body, kind="doubling")


def test_candidates_that_hang_or_reach_outside_their_memory(device: Any, tmp_path: Any) -> None:
    def choose(silence_s: float) -> tuple[str, dict[str, float]]:
        timer = IsolatedTimer(device, silence_s=silence_s)
        tuner = CudaTuner(timer, 600.0, 5, TimingCache(tmp_path / "times.jsonl"))
        ((_, config, times),) = tuner([(doubling(), [Doing()])], target(), {})
        timer.close()
        return str(dict(config)["does"]), {name.partition("does=")[2]: us for name, us in times}

    chosen, times = choose(10.0)
    assert chosen in ("nothing", "work") and max(times["nothing"], times["work"]) < UNABLE
    assert times["hang"] == times["reach"] == UNABLE
    cache = TimingCache(tmp_path / "times.jsonl")
    (failed,) = [found for key in cache.records if (found := cache.failed(key))]
    assert failed["doing does=hang"] == "it did not end within 10 s" and "ADDRESS" in failed["doing does=reach"]
    assert choose(1e-3) == (chosen, times), "nothing is run again"
    # This process has its device as before.
    with device.active():
        stream, memory, back = device.create_stream(), DeviceMemory(device, 4096), np.empty(1024, np.float32)
        given = np.arange(1024, dtype=np.float32)
        device.upload(memory.address, given, stream)
        device.download(back, memory.address, stream)
        device.synchronize(stream)
        device.destroy_stream(stream)
    np.testing.assert_array_equal(back, given)


@pytest.mark.parametrize("ordinal", [0])
def test_the_measuring_process_opens_the_device_beside_this_one(device: Any, ordinal: int) -> None:
    timer = IsolatedTimer(device)
    timer.start()
    timer.ask("close")
    assert timer.process is not None and not timer.process.closed
    timer.close()
