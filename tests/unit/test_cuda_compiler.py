"""Compiler processes that crash, hang, cannot write or are interrupted, behind a stand-in for Triton's own; and the cache."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import pytest

from dovetail.codegen import triton_compiler
from dovetail.codegen.kernel import Kernel, Launch, Param, make_triton_kernel
from dovetail.codegen.triton_compiler import Overdue, compile_kernels, require
from dovetail.core.env import override
from dovetail.core.errors import CompileError
from tests.unit.cuda_harness import SM80, SM90

# What it does with a kernel stands in the kernel's text.
STAND_IN = """
import json, os, signal, subprocess, sys, tempfile, time
from pathlib import Path
for line in sys.stdin:
    request = json.loads(line)
    text = Path(request["source"]).read_text()
    with open(os.environ["STAND_IN_LOG"], "a") as log:
        log.write(request["entry"] + "\\n")
    if "# crash" in text:
        os.kill(os.getpid(), signal.SIGSEGV)
    while "# spin" in text:
        pass
    if "# wait" in text:  # for another process that spins
        subprocess.run([sys.executable, "-c", "while True: pass"])
    if "# hang" in text:
        tempfile.mkstemp()
        time.sleep(600)
    answer = {
        "threads": 32, "shared": 0, "scratch": 0, "scratch_align": 1, "registers": 16, "stack": 0, "pdl": False, "cluster": 1,
        "descriptors": [],
    }
    if "# wrong" in text:
        answer = {"error": "CompilationError: wrong"}
    elif "# full" in text:
        answer = {"error": "OSError: [Errno 28] No space left on device", "unusable": True}
    elif "# half" in text:
        print('{"threads": 3', end="", flush=True)
        os._exit(1)
    else:
        Path(request["output"]).write_bytes(text.encode())
    print(json.dumps(answer), flush=True)
"""


def kernel(number: int, does: str = "works") -> Kernel:
    return make_triton_kernel(
        f"@triton.jit\ndef @ENTRY@(p):\n    # {does} {number}\n    pass\n", params=(Param("out", 0),), dims=(), tactic="stand-in",
        launch=Launch(grid=(1, 1, 1), warps=1, stages=1, types=("fp32",), aligned=(True,)),
    )  # fmt: skip


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Puts the stand-in in Triton's place, with a cache of its own; returns what it was asked to compile so far."""
    script, log = tmp_path / "stand_in.py", tmp_path / "log"
    script.write_text(textwrap.dedent(STAND_IN))
    log.touch()
    folder = tmp_path / "temporary"
    folder.mkdir()
    triton_compiler._end_idle()  # those of tests before
    monkeypatch.setattr(triton_compiler, "_COMMAND", (sys.executable, "-S", str(script)))
    monkeypatch.setenv("STAND_IN_LOG", str(log))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with override(cache=tmp_path / "cache"):
        yield lambda: log.read_text().split()
        triton_compiler._end_idle()
        assert list(folder.iterdir()) == [], "every process takes its folder with it"
        assert not list((tmp_path / "cache").rglob("compile-*"))


def children() -> set[int]:
    """Processes that this one has started and that are not reaped."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.add(int(path.parent.name))
    return found


def test_one_bad_kernel_costs_itself_alone(asked):
    given = [kernel(0), kernel(1, "crash"), kernel(2, "wrong"), kernel(3, "half"), kernel(4)]
    found = compile_kernels(given, SM90, jobs=2)
    good, crashed, wrong, half, last = (found[k.entry] for k in given)
    assert crashed == "the compiler process ended with code -11" and wrong == "CompilationError: wrong"
    assert half == "the compiler process ended with code 1"
    assert {good.registers, last.registers} == {16}
    with pytest.raises(CompileError, match=r"refused a stand-in kernel .*: CompilationError: wrong"):
        require(found, [given[0], given[2]])


def test_a_hanging_kernel_is_given_up_and_its_process_ends(asked):
    before = children()
    given = [kernel(0, "hang"), kernel(1)]
    found = compile_kernels(given, SM90, jobs=1, timeout_s=2.0)
    reason = found[given[0].entry]
    assert re.fullmatch(r"no result after \d+ s, of which it had a CPU for \d s", reason)
    assert isinstance(reason, Overdue), "waiting for a CPU says nothing of the kernel"
    assert found[given[1].entry].registers == 16
    triton_compiler._end_idle()
    assert children() <= before


@pytest.mark.parametrize("busy", ["spin", "wait"])
def test_what_counts_is_cpu_time_of_the_compiler_and_its_assembler(asked, monkeypatch, busy):
    monkeypatch.setattr(triton_compiler, "_PATIENCE", 1000.0)
    before = children()
    given = [kernel(0, busy), kernel(1)]
    found = compile_kernels(given, SM90, jobs=1, timeout_s=1.0)
    reason = found[given[0].entry]
    assert reason == "no result after 1 s of CPU time" and not isinstance(reason, Overdue)
    assert found[given[1].entry].registers == 16
    triton_compiler._end_idle()
    assert children() <= before


def test_processes_wait_for_the_next_build_and_may_be_gone_by_then(asked):
    compile_kernels([kernel(0)], SM90, jobs=1)
    (waiting,) = triton_compiler._idle
    assert waiting._process.poll() is None
    compile_kernels([kernel(1)], SM90, jobs=1)
    assert triton_compiler._idle == [waiting], "it was used again"
    waiting.kill()
    waiting._process.wait()
    waiting.dead = False  # it was ended by somebody else
    assert compile_kernels([one := kernel(2)], SM90, jobs=1)[one.entry].registers == 16
    # A kernel that crashes whatever compiles it is refused, after a fresh process has said so.
    assert "code -11" in compile_kernels([bad := kernel(3, "crash")], SM90, jobs=1)[bad.entry]
    assert asked().count(bad.entry) == 2


@pytest.mark.parametrize("interrupted", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_ends_all_processes_and_keeps_what_is_done(asked, interrupted):
    before = children()
    given = [kernel(0), *(kernel(i, "hang") for i in range(1, 4))]

    def done(finished, total):
        if finished == 1:
            assert children() > before
            raise interrupted

    start = time.monotonic()
    with pytest.raises(interrupted):
        compile_kernels(given, SM90, jobs=2, done=done, deadline=time.monotonic() + 500)
    assert time.monotonic() - start < 60, "nobody waits for those that hang"
    assert children() <= before
    assert compile_kernels(given[:1], SM90)[given[0].entry].registers == 16
    assert asked().count(given[0].entry) == 1


def test_a_deadline_leaves_out_what_comes_late(asked):
    given = [kernel(i) for i in range(3)]
    assert compile_kernels(given, SM90, deadline=time.monotonic() - 1) == {} and asked() == []
    compile_kernels(given[1:2], SM90)
    assert set(compile_kernels(given, SM90, deadline=time.monotonic() - 1)) == {given[1].entry}, "what is known costs no time"
    assert len(compile_kernels(given, SM90, deadline=time.monotonic() + 500)) == 3
    assert asked() == [given[1].entry, given[0].entry, given[2].entry], "in the order given"


def test_a_full_disk_is_no_fault_of_a_kernel(asked):
    with pytest.raises(CompileError, match=r"cannot compile into the cache folder .*No space left on device; free space there, or set"):
        compile_kernels([kernel(0, "full"), kernel(1, "hang")], SM90, jobs=2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(asked, tmp_path):
    folder = tmp_path / "cache" / "cubins" / "sm_90"
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    try:
        with pytest.raises(CompileError, match=r"cannot compile into the cache folder .*Permission denied"):
            compile_kernels([kernel(0)], SM90)
    finally:
        folder.chmod(0o700)


def test_a_file_in_the_place_of_the_cache_folder(asked, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "cubins").write_text("")
    with pytest.raises(CompileError, match="cannot compile into the cache folder"):
        compile_kernels([kernel(0)], SM90)


@pytest.mark.parametrize("damage", ["code", "record", "keys", "gone"])
def test_damaged_entries_of_the_cache_are_compiled_again(asked, tmp_path, damage):
    given = kernel(0)
    good = compile_kernels([given], SM90)[given.entry]
    (code,) = (tmp_path / "cache").rglob("*.cubin")
    record = code.with_suffix(".json")
    if damage == "code":
        code.write_bytes(code.read_bytes()[:-1])
    elif damage == "record":
        record.write_text(record.read_text()[:-5])
    elif damage == "keys":
        record.write_text(json.dumps({"sha256": json.loads(record.read_text())["sha256"]}))
    else:
        code.unlink()
    assert compile_kernels([given], SM90)[given.entry] == good
    assert asked() == [given.entry] * 2


def test_targets_have_caches_of_their_own(asked):
    given = kernel(0)
    compile_kernels([given], SM90)
    compile_kernels([given], SM80)
    assert asked() == [given.entry] * 2


def test_builds_at_the_same_time_share_the_cache(asked, tmp_path):
    given = [kernel(i) for i in range(24)]
    results = []
    threads = [threading.Thread(target=lambda: results.append(compile_kernels(given, SM90, jobs=2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(r == results[0] and len(r) == 24 for r in results)
    assert len(list((tmp_path / "cache").rglob("*.cubin"))) == 24


def test_many_kernels_take_no_more_threads_than_asked_for(asked):
    given = [kernel(i) for i in range(400)]
    seen = []
    found = compile_kernels(given, SM90, jobs=2, done=lambda done, total: seen.append((done, total)))
    assert len(found) == 400 and seen == [(i, 400) for i in range(401)]
    threads = threading.active_count()
    assert compile_kernels(given, SM90, jobs=2) == found and threading.active_count() == threads


def test_without_triton(monkeypatch):
    import importlib.metadata

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(CompileError, match=r"triton package is not installed, .* pip install 'dovetail\[cuda\]'"):
        compile_kernels([kernel(0)], SM90)


def test_a_broken_installation_of_triton(monkeypatch, tmp_path):
    (tmp_path / "triton.py").write_text("raise ImportError('libtriton.so: undefined symbol')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    triton_compiler._end_idle()
    with override(cache=tmp_path / "cache"), pytest.raises(CompileError, match=r"libtriton.so: undefined symbol"):
        compile_kernels([kernel(0)], SM90)
    triton_compiler._end_idle()
