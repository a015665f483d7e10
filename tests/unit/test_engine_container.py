"""Engine files: aligned zip members, hashes, signatures, atomic writes, hostile input."""

import errno
import os
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovetail import runtime
from dovetail.core import files
from dovetail.core.env import override
from dovetail.core.errors import (
    DeviceError,
    EngineError,
    PlanFormatError,
    PlanVersionError,
    RefitError,
    TrustError,
    UsageError,
)
from dovetail.engine import container, tensors, trust
from dovetail.engine.container import Container
from dovetail.engine.file import EngineFile, TargetFiles, add_target, write_engine
from tests.unit.native_plans import host_binary, kernel_binary, scaled

W = {"w": np.arange(4, dtype=np.float32)}
X = {"x": np.ones(8, np.float32)}


@pytest.fixture(autouse=True)
def home(tmp_path):
    with override(home=tmp_path / "home", cache=tmp_path / "cache"):
        yield tmp_path / "home"


def save(path, plan=None, **kw):
    files = TargetFiles(plan or scaled(), kernel_binary(), host_binary(), "source")
    write_engine(path, graph="graph", weights=W, targets={"cpu:avx2": files}, **kw)
    return path


@pytest.fixture
def saved(tmp_path):
    return save(tmp_path / "a.plan", info={"model": "m"}, build={"seconds": 1})


def test_a_saved_engine_runs(saved):
    engine = runtime.open(saved)
    assert engine.run(X)["y"].tolist() == [0, 2, 4, 6] * 2
    engine.set_weights({"w": np.ones(4, np.float32)})
    assert engine.run(X)["y"].tolist() == [2] * 8


def test_contents_come_back(saved):
    file = EngineFile(saved)
    assert file.targets == ("cpu:avx2",) and file.graph == "graph"
    assert file.info == {"model": "m"} and file.build == {"seconds": 1}
    assert file.source("cpu:avx2") == "source" and file.plan("cpu:avx2") == scaled()
    weights = file.weights()
    np.testing.assert_array_equal(weights["w"], W["w"])
    assert not weights["w"].flags.writeable
    with pytest.raises(UsageError, match="expected one of cpu:avx2"):
        file.plan("cpu:other")


def test_it_is_an_ordinary_aligned_zip(saved):
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        assert all(i.compress_type == zipfile.ZIP_STORED for i in archive.infolist())
    box = Container(saved)
    assert all(box.offset(name) % 4096 == 0 for name in box.members)
    box.verify()


def test_equal_contents_give_equal_files(tmp_path):
    assert save(tmp_path / "a.plan").read_bytes() == save(tmp_path / "b.plan").read_bytes()


def test_large_members_are_hashed_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "CHUNK", 1000)
    data = np.random.default_rng(0).bytes(3500)
    container.write(tmp_path / "c.plan", {"big": data, "empty": b"", "exact": data[:1000]}, {})
    box = Container(tmp_path / "c.plan")
    assert len(box.members["big"].chunks) == 4 and not box.members["exact"].chunks
    box.verify()
    assert bytes(box.member("big")) == data
    with open(tmp_path / "c.plan", "r+b") as file:
        file.seek(box.offset("big") + 2500)
        file.write(b"\0\0")
    with pytest.raises(PlanFormatError, match=r"big does not match its hash \(piece 2 of 4\)"):
        Container(tmp_path / "c.plan").verify()


def test_zip64_records_appear_where_sizes_need_them(tmp_path, monkeypatch):
    # 4 GiB files are too slow for a test: a sparse member stands in for the big one.
    big = tmp_path / "big"
    with open(big, "wb") as file:
        file.truncate((4 << 30) + 5)
    monkeypatch.setattr(container, "member_info", lambda c: container.MemberInfo(1, "0" * 64))
    real = container.zlib.crc32
    crc = lambda data: real(data) if len(data) < 1 << 30 else 0  # noqa: E731
    monkeypatch.setattr(container, "zlib", type("Zlib", (), {"crc32": staticmethod(crc)}))

    class Sparse:
        """Writes zeros as holes."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if len(data) > 1 << 30:
                return self.file.seek(len(data), os.SEEK_CUR)
            return self.file.write(data)

    with open(tmp_path / "z.plan", "wb") as file:
        writer = container._ZipWriter(Sparse(file))
        writer.add("a", big)
        writer.add("b", b"after")
        writer.finish()
    with zipfile.ZipFile(tmp_path / "z.plan") as archive:
        assert archive.getinfo("a").file_size == (4 << 30) + 5
        assert archive.read("b") == b"after"


def test_a_target_is_added_without_touching_the_others(saved):
    from dataclasses import replace

    before = Container(saved)
    signature = bytes(before.member("targets/cpu-avx2/signature"))
    other = replace(scaled(), target="cpu:dream", cpu_flags=("warp_drive",))
    add_target(saved, "cpu:dream", TargetFiles(other, kernel_binary(), host_binary()))
    file = EngineFile(saved)
    file.container.verify()
    assert file.targets == ("cpu:avx2", "cpu:dream") and file.plan("cpu:dream") == other
    assert bytes(file.container.member("targets/cpu-avx2/signature")) == signature
    assert file.graph == "graph" and file.info == {"model": "m"}
    engine = runtime.open(saved)  # takes the one that runs here
    assert engine.plan.target == scaled().target
    assert engine.run(X)["y"].tolist() == [0, 2, 4, 6] * 2
    with pytest.raises(DeviceError, match="warp_drive"):
        runtime.open(saved, target="cpu:dream")
    with pytest.raises(PlanFormatError, match="has other weights"):
        add_target(saved, "cpu:third", TargetFiles(scaled(5)))


# --- trust ----------------------------------------------------------------------------------------


def test_the_key_is_private_and_stays(home):
    key = trust.own_key()
    assert trust.own_key() == key and len(key) == 32
    assert (home / "key").stat().st_mode & 0o777 == 0o600
    (home / "key").chmod(0o644)
    with pytest.raises(TrustError, match="0600"):
        trust.own_key()


def test_a_strangers_engine_needs_a_provider_or_the_key(saved, tmp_path):
    key = trust.own_key().hex()
    asked = []

    def provider(file, target):
        asked.append((file.path, target))
        return runtime.Provided([kernel_binary()], host_binary(), scaled())

    with override(home=tmp_path / "elsewhere"):
        with pytest.raises(TrustError, match="dovetail trust add KEY"):
            runtime.open(saved)
        engine = runtime.open(saved, kernels=provider)
        assert engine.run(X)["y"].tolist() == [0, 2, 4, 6] * 2
        assert asked == [(saved, "cpu:avx2")]
        identity = trust.add(key)
        assert runtime.open(saved).run(X)["y"].tolist() == [0, 2, 4, 6] * 2
        trust.remove(identity)
        with pytest.raises(TrustError):
            runtime.open(saved)
        with pytest.raises(TrustError, match="expected 64 hex digits"):
            trust.add("nonsense")


@pytest.mark.parametrize("member", ["plan.json", "kernels.so", "host.so"])
def test_changed_contents_break_the_signature(saved, member):
    box = Container(saved)
    members = {name: bytes(box.member(name)) for name in box.members}
    name = f"targets/cpu-avx2/{member}"
    members[name] = members[name].replace(b"k_double", b"k_triple") + b" "
    manifest = {k: box.manifest[k] for k in ("info", "targets", "weights")}
    container.write(saved, members, manifest)
    with pytest.raises(TrustError, match="changed after signing"):
        runtime.open(saved)


def test_unsigned_engines_are_refused(tmp_path):
    path = save(tmp_path / "u.plan", sign=False)
    with pytest.raises(TrustError, match="not signed"):
        runtime.open(path)


def test_a_target_that_the_machine_lacks_is_refused(tmp_path):
    from dataclasses import replace

    path = save(tmp_path / "t.plan", replace(scaled(), cpu_flags=("warp_drive",)))
    with pytest.raises(DeviceError, match="warp_drive"):
        runtime.open(path)
    with pytest.raises(DeviceError, match="built for pdp11"):
        runtime.open(save(tmp_path / "t.plan", replace(scaled(), arch="pdp11")))


# --- weights --------------------------------------------------------------------------------------


def test_stripped_engines_take_weights_at_opening(tmp_path):
    path = save(tmp_path / "s.plan", strip_weights=True)
    with pytest.raises(RefitError, match="pass weights="):
        runtime.open(path)
    assert runtime.open(path, weights=W).run(X)["y"].tolist() == [0, 2, 4, 6] * 2


def test_packed_weights_are_cached_by_content(saved, tmp_path):
    runtime.open(saved)
    (cached,) = (tmp_path / "cache" / "packed").iterdir()
    before = cached.stat().st_mtime_ns
    assert runtime.open(saved).run(X)["y"].tolist() == [0, 2, 4, 6] * 2
    assert cached.stat().st_mtime_ns == before
    for damage in (b"", b"\x05\0\0\0\0\0\0\0junk", cached.read_bytes()[:-3]):
        cached.write_bytes(damage)
        assert runtime.open(saved).run(X)["y"].tolist() == [0, 2, 4, 6] * 2
        assert len(cached.read_bytes()) > len(damage)


def test_nothing_enters_the_cache_under_a_wrong_hash(saved, tmp_path):
    box = Container(saved)
    members = {name: bytes(box.member(name)) for name in box.members}
    evil = {"w": np.full(4, 9, np.float32)}
    members["weights.safetensors"] = b"".join(tensors.serialise(evil))
    container.write(saved, members, {k: box.manifest[k] for k in ("info", "targets", "weights")})
    with pytest.raises(PlanFormatError, match="does not match its hash"):
        runtime.open(saved)
    assert not (tmp_path / "cache" / "packed").exists()


def test_an_unwritable_cache_only_costs_time(saved, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert runtime.open(saved).run(X)["y"].tolist() == [0, 2, 4, 6] * 2


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float64).reshape(2, 3),
        np.array(1.5, np.float16),
        np.zeros((0, 4), np.int64),
        np.array([True, False]),
        np.arange(-4, 4).astype(ml_dtypes.int4),
        np.array([1, 2, 0.5]).astype(ml_dtypes.bfloat16),
        np.array([1, 2, 0.5]).astype(ml_dtypes.float8_e4m3fnuz),
        np.array([["a", "ü"], ["", "c" * 99]], object),
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4).T,
    ],
)
def test_tensors_of_every_kind_round_trip(array):
    weights = {"name/with.odd chars": array, "other": np.ones(3, np.float32)}
    data = b"".join(tensors.serialise(weights))
    found = tensors.read(memoryview(data))
    assert set(found) == set(weights)
    result = found["name/with.odd chars"]
    assert result.dtype == array.dtype and result.shape == array.shape
    np.testing.assert_array_equal(result, array)


def test_other_programs_read_our_tensors_and_we_theirs():
    from safetensors import numpy as safetensors_numpy

    weights = {"a": np.arange(5, dtype=np.int8), "b": np.ones((2, 2), np.float64)}
    ours = b"".join(tensors.serialise(weights))
    theirs = safetensors_numpy.save(weights, {"format": "np"})
    for data in (safetensors_numpy.load(ours), tensors.read(memoryview(theirs))):
        for name, array in weights.items():
            np.testing.assert_array_equal(data[name], array)


# --- writing --------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_behind(saved, monkeypatch):
    before = saved.read_bytes()
    real = container._ZipWriter.add

    def full(self, name, content):
        if name.startswith("weights"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, name, content)

    monkeypatch.setattr(container._ZipWriter, "add", full)
    with pytest.raises(OSError, match="No space left"):
        save(saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir() if "plan" in p.name] == ["a.plan"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_device_without_space_fails_cleanly(tmp_path, monkeypatch):
    def into_full(handle, mode):
        os.close(handle)
        return open("/dev/full", mode)

    monkeypatch.setattr(files.os, "fdopen", into_full)
    with pytest.raises(OSError, match="No space left"):
        container.write(tmp_path / "f.plan", {"a": bytes(1 << 20)}, {})
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == []


# --- hostile files --------------------------------------------------------------------------------


def test_other_files_are_refused(tmp_path):
    for content in (b"", b"hello", b"PK\5\6" + bytes(18)):
        path = tmp_path / "x.plan"
        path.write_bytes(content)
        with pytest.raises(PlanFormatError, match="expected an engine file"):
            Container(path)
    with pytest.raises(PlanFormatError, match="cannot read"):
        Container(tmp_path / "absent.plan")


def test_compressed_and_badly_named_members_are_refused(tmp_path):
    for name, compression in (
        ("manifest.json", zipfile.ZIP_DEFLATED),
        ("../escape", zipfile.ZIP_STORED),
        ("/absolute", zipfile.ZIP_STORED),
        ("a//b", zipfile.ZIP_STORED),
    ):
        with zipfile.ZipFile(tmp_path / "x.plan", "w", compression) as archive:
            archive.writestr(name, b"{}" * 50)
        with pytest.raises(PlanFormatError):
            Container(tmp_path / "x.plan")


def test_newer_formats_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "FORMAT_VERSION", 7)
    container.write(tmp_path / "n.plan", {}, {})
    monkeypatch.undo()
    with pytest.raises(PlanVersionError, match="update Dovetail"):
        Container(tmp_path / "n.plan")


def test_truncated_files_are_refused(saved):
    data = saved.read_bytes()
    for size in (len(data) - 1, len(data) - 30, len(data) // 2, 5000, 100):
        saved.write_bytes(data[:size])
        with pytest.raises(EngineError):
            EngineFile(saved)


def test_members_may_not_leave_the_file(saved):
    data = bytearray(saved.read_bytes())
    at = data.rfind(b"PK\1\2")
    for offset, value in ((20, 1 << 30), (24, 1 << 30), (42, 1 << 31)):
        broken = bytearray(data)
        struct.pack_into("<I", broken, at + offset, value)
        saved.write_bytes(broken)
        with pytest.raises(PlanFormatError):
            Container(saved)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_mutated_files_raise_engine_errors_or_still_work(saved, data):
    path = saved.with_name("mutant.plan")
    content = bytearray(saved.read_bytes())
    interesting = [i for i, b in enumerate(content) if b]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.sampled_from(interesting))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        file = EngineFile(path)
        file.container.verify()
        file.graph, file.build, file.weights(), file.plan("cpu:avx2")
        engine = runtime.open(path)
    except (EngineError, UsageError):
        return
    assert engine.run(X)["y"].tolist() == [0, 2, 4, 6] * 2
