"""Measuring in a process of its own: candidates that hang, crash or end the device's context, with a stand-in for the device."""

from __future__ import annotations

import gc
import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dovetail.api import building
from dovetail.codegen.tactic import Config, Group
from dovetail.codegen.target import Target
from dovetail.codegen.triton_compiler import Compiled
from dovetail.core.errors import CompileError, DeviceLostError
from dovetail.device.cuda.driver_host import HostDriver
from dovetail.tuner import cuda_choose, cuda_time
from dovetail.tuner.cuda_choose import UNABLE, CudaTuner
from dovetail.tuner.cuda_isolated import COMMAND, IsolatedTimer
from dovetail.tuner.cuda_time import GraphTimer
from dovetail.tuner.timing_cache import TimingCache
from tests.unit.cuda_harness import SM90
from tests.unit.test_cuda_tuner import Doubling, doubling

ROOT = Path(__file__).resolve().parents[2]

# What a kernel does is what its code says: the milliseconds that it takes, or worse.
STAND_IN = """
import functools, os, signal, sys, time
from dovetail.core.errors import DeviceError, DeviceLostError
from dovetail.device.cuda.driver_host import HostDriver
from dovetail.tuner import cuda_network, cuda_time, cuda_worker

cuda_time._LAUNCHES = cuda_time._SETS = 1
cuda_time._ROUNDS = ((2.0, 8, 1),)
cuda_worker.Meter = functools.partial(cuda_time.Meter, pool_bytes=1 << 20)
capture = cuda_network.Network.capture
network = []

def captured(*arguments):
    network.append(True)
    return capture(*arguments)

cuda_network.Network.capture = captured

def run(code, entry, grid, values):
    what = bytes(code).decode()
    with open(os.environ["STAND_IN_LOG"], "a") as log:
        log.write(what + "\\n")
    if what == "hang" or (what == "late" and network):
        time.sleep(600)
    elif what == "crash":
        print("a last word", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "lose":
        raise DeviceLostError("an illegal address was met")
    elif what == "refuse":
        raise DeviceError("too many resources")
    time.sleep(0.001 if what == "late" else float(what) / 1e3)

def opened(ordinal):
    if ordinal == 7:
        raise DeviceError("cuda:7: all devices are busy or unavailable")
    return HostDriver(run, ordinal)

cuda_worker.main(opened)
"""


class Doing(Doubling):
    """Candidates that do what they are told."""

    def __init__(self, what: Sequence[str]) -> None:
        self.what = what

    def configs(self, group: Group, target: Target) -> Sequence[Config]:
        return [(("block", 2**i), ("does", what)) for i, what in enumerate(self.what)]


def compiled(kernels: Any, target: Any, **options: Any) -> dict[str, Compiled | str]:
    """Code that says what to do."""
    code = {k.entry: str(dict(k.config)["does"]).encode() for k in kernels}
    return {entry: Compiled(what, 32, 0, 0, 1, 16, 0, False, 1, ()) for entry, what in code.items()}


class Setting:
    """A folder with the stand-in, and builds that measure with it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        (folder / "stand_in.py").write_text(textwrap.dedent(STAND_IN))
        self.command = (sys.executable, str(folder / "stand_in.py"))
        self.log.touch()

    def ran(self) -> list[str]:
        return self.log.read_text().split()

    def timer(self, ordinal: int = 0, silence_s: float = 5.0, command: Sequence[str] | None = None) -> IsolatedTimer:
        def here(code: bytes, entry: str, grid: Any, values: Any) -> None:
            with open(self.log, "a") as log:
                log.write("here\n")

        return IsolatedTimer(HostDriver(here, ordinal), "", self.command if command is None else command, silence_s)

    def choose(self, what: Sequence[str], timer: Any) -> tuple[str, dict[str, float]]:
        tuner = CudaTuner(timer, 600.0, 5, TimingCache(self.folder / "times.jsonl"), jobs=1)
        ((_, config, times),) = tuner([(doubling(), [Doing(what)])], SM90, {})
        return str(dict(config)["does"]), {n.partition("does=")[2]: t for n, t in times}


def children() -> list[Path]:
    """Processes that this one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"stand_in" in (path / "cmdline").read_bytes():
                found.append(path)
        except OSError:
            continue
    return found


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    made = Setting(tmp_path)
    monkeypatch.setattr(cuda_choose, "compile_kernels", compiled)
    monkeypatch.setattr(GraphTimer.__init__, "__defaults__", ("", 1 << 20))
    monkeypatch.setenv("STAND_IN_LOG", str(made.log))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield made
    gc.collect()
    assert children() == [], "processes end with their timer"


def test_candidates_that_end_the_process_cost_themselves_alone(setting):
    what = ["lose", "60", "crash", "1", "refuse"]
    chosen, times = setting.choose(what, setting.timer())
    assert chosen == "1" and times["1"] < times["60"] < UNABLE
    assert times["lose"] == times["crash"] == times["refuse"] == UNABLE
    cache = TimingCache(setting.folder / "times.jsonl")
    (failed,) = [f for key in cache.records if (f := cache.failed(key))]
    reasons = {n.partition("does=")[2]: reason for n, reason in failed.items()}
    assert reasons == {"lose": "an illegal address was met", "crash": "the measuring process ended with code -9: a last word"}
    assert setting.ran().count("lose") == setting.ran().count("crash") == 1
    before = setting.ran()
    assert setting.choose(what, setting.timer(command=["false"])) == (chosen, times) and setting.ran() == before


def test_a_candidate_that_hangs_is_ended_and_never_tried_again(setting):
    assert setting.choose(["hang", "1"], setting.timer(silence_s=8.0))[0] == "1"
    assert setting.ran().count("hang") == 1
    # Others of the group are measured again where one is new; what failed is not.
    _, times = setting.choose(["hang", "1", "0"], setting.timer())
    assert times["hang"] == UNABLE and set(times) == {"hang", "1", "0"} and setting.ran().count("hang") == 1


def test_a_group_of_which_nothing_ends_is_an_error_with_reasons(setting):
    with pytest.raises(CompileError, match=r"no candidate compiles and runs .*=crash: the measuring process ended .*=lose: an illegal"):
        setting.choose(["crash", "lose"], setting.timer())


def test_a_candidate_that_hangs_in_the_network_alone(setting, monkeypatch):
    monkeypatch.setattr(cuda_choose, "_CLOSE", 1e9)
    chosen, times = setting.choose(["late", "1"], setting.timer(silence_s=8.0))
    assert chosen == "1" and times["late"] == UNABLE
    before = setting.ran()
    assert setting.choose(["late", "1"], setting.timer(command=["false"])) == (chosen, times) and setting.ran() == before


@pytest.mark.parametrize(
    "ordinal, command, reason",
    [
        (7, None, "cuda:7: all devices are busy or unavailable"), (99, COMMAND, "cuda"),
        (0, (sys.executable, "-c", "raise SystemExit('no such library')"), "ended with code 1: no such library"),
    ],
)  # fmt: skip
def test_where_no_other_process_can_use_the_device_this_one_measures(setting, ordinal, command, reason, caplog):
    _, times = setting.choose(["1", "2"], setting.timer(ordinal, command=command))
    assert set(setting.ran()) == {"here"} and max(times.values()) < UNABLE
    (message,) = [r.getMessage() for r in caplog.records if "no other process can use the device" in r.getMessage()]
    assert reason in message


def test_an_interrupt_ends_the_process_and_the_default_is_taken(setting):
    def interrupt() -> None:
        while "hang" not in setting.ran():
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    # A shell has background jobs ignore interrupts, and Python leaves it at that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        waiting = threading.Thread(target=interrupt)
        waiting.start()
        assert setting.choose(["hang", "1"], setting.timer(silence_s=500.0)) == ("hang", {})
        waiting.join()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_hanging_process_ends_with_the_one_that_started_it(setting):
    timer = setting.timer()
    timer.start()
    process = timer.process._process
    waiting = threading.Thread(target=lambda: setting.choose(["1", "hang"], timer))
    waiting.start()
    while "hang" not in setting.ran():
        time.sleep(0.05)
    process.stdin.close()  # as the system does
    assert process.wait(60) == 0
    waiting.join()


def test_in_this_process_a_lost_device_is_told_and_what_lost_it_is_left_out_next_time(setting, monkeypatch):
    monkeypatch.setattr(cuda_time, "_ROUNDS", ())
    monkeypatch.setattr(cuda_time, "_LAUNCHES", 1)

    def run(code: bytes, entry: str, grid: Any, values: Any) -> None:
        if code == b"lose":
            raise DeviceLostError("an illegal address was met")

    def both(timer: GraphTimer) -> list[str]:
        tuner = CudaTuner(timer, 600.0, 1, TimingCache(setting.folder / "times.jsonl"), jobs=1)
        found = tuner([(doubling(), [Doing(["1", "lose"])])], SM90, {})
        return [str(dict(config)["does"]) for _, config, _ in found]

    with pytest.raises(DeviceLostError, match=r"does=lose ended the device.s context: an illegal address was met; build again: it is"):
        both(GraphTimer(HostDriver(run), pool_bytes=1 << 20))
    assert "lose" not in both(GraphTimer(HostDriver(run), pool_bytes=1 << 20))


def test_functions_are_given_back_when_they_have_been_timed(setting, monkeypatch):
    monkeypatch.setattr(cuda_time, "_LAUNCHES", 1)
    driver = HostDriver(lambda *_: None)
    setting.choose(["1", "2"], GraphTimer(driver, pool_bytes=1 << 20))
    assert driver.log["load"] >= 2 and driver.functions == 0


def test_devices_whose_kernels_can_do_harm_have_them_timed_in_another_process(monkeypatch):
    from dovetail.builder.options import BuildOptions

    driver = HostDriver(lambda *_: None)
    monkeypatch.setattr(building, "driver", lambda ordinal: driver)
    options = BuildOptions(target="sm_90")
    assert isinstance(building._timer(options, SM90), GraphTimer)
    monkeypatch.setattr(driver, "hazardous", True, raising=False)
    assert isinstance(building._timer(options, SM90), IsolatedTimer)
