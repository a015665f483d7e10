"""The compiler driver and targets: objects without outside symbols, cache, parallel builds, errors."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from dovetail.codegen.compiler import (
    cache_key,
    compile_c,
    compile_library,
    compile_many,
    compile_parts,
)
from dovetail.codegen.kernel import ENTRY, make_kernel, translation_unit
from dovetail.codegen.target import ISAS, CudaTarget, Target
from dovetail.codegen.vmath import prelude
from dovetail.core.env import override
from dovetail.core.errors import CompileError, UsageError

SOURCE = "int answer(void) { return 42; }\n"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path):
    with override(cache=tmp_path):
        yield


def test_compiles_loads_and_caches(tmp_path):
    first = compile_c(SOURCE, Target.host())
    assert ctypes.CDLL(str(first)).answer() == 42
    stamp = first.stat().st_mtime_ns
    assert compile_c(SOURCE, Target.host()) == first and first.stat().st_mtime_ns == stamp
    kept = sorted(p.suffix for p in first.parent.iterdir())
    assert kept == [".o", ".so"], "scratch files stay behind"
    assert first.is_relative_to(tmp_path)


def test_parts_are_linked_and_cached_one_by_one(tmp_path):
    other = "int other(void) { return 7; }\n"
    both = compile_parts([SOURCE, other], Target.host())
    library = ctypes.CDLL(str(both))
    assert (library.answer(), library.other()) == (42, 7)
    objects = {p: p.stat().st_mtime_ns for p in both.parent.glob("*.o")}
    compile_parts([other, "int third(void) { return 1; }\n"], Target.host())
    assert len(objects) == 2 and all(p.stat().st_mtime_ns == stamp for p, stamp in objects.items())


def test_libraries_are_found_by_their_name():
    """Once it is loaded, the loader knows a library by the name that it was made for."""
    name, generic = "libdovetail_named.so", Target.parse("cpu:generic")
    path = compile_library(SOURCE, generic, name)
    assert path.name == name
    assert compile_library(SOURCE, generic, name) == path
    other = compile_library("int other(void) { return 7; }\n", generic, name)
    assert other.parent != path.parent
    with pytest.raises(OSError, match="cannot open shared object"):
        ctypes.CDLL(name)
    held = ctypes.CDLL(str(path))
    assert ctypes.CDLL(name).answer() == held.answer() == 42


def test_key_depends_on_source_and_target():
    a, b = Target.parse("cpu:avx2"), Target.parse("cpu:avx512")
    assert len({cache_key(SOURCE, a), cache_key(SOURCE, b), cache_key(SOURCE + " ", a)}) == 3


def test_parallel_writers_of_one_object():
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: compile_c(SOURCE, Target.host()), range(8)))
    assert len(set(paths)) == 1 and ctypes.CDLL(str(paths[0])).answer() == 42


def test_compile_many_keeps_order_and_merges_equal_sources():
    sources = [f"int answer(void) {{ return {n}; }}" for n in (1, 2, 1)]
    paths = compile_many(sources, Target.host(), jobs=2)
    assert paths[0] == paths[2] != paths[1]
    assert ctypes.CDLL(str(paths[1])).answer() == 2


def test_errors_show_the_compilers_words():
    with pytest.raises(CompileError, match="undeclared identifier 'y'"):
        compile_c("int x(void) { return y; }", Target.host())
    with override(cc="no-such-compiler"), pytest.raises(CompileError, match="DOVETAIL_CC"):
        compile_c(SOURCE, Target.host())


@pytest.mark.parametrize("isa", ISAS)
def test_every_target_compiles_and_needs_no_library(isa):
    # Zeroed and copied arrays make the compiler call memset and memcpy; rounding and fp16 make it call libm
    # and compiler-rt where the instruction set has no instruction. The linker rejects undefined symbols.
    text = """
    struct big { float x[600]; };
    void use(struct big *out, const struct big *in, const float *a, uint16_t *h) {
      struct big zero = {0};
      *out = zero;
      for (int i = 0; i < 600; i++) out->x[i] += dt_floorf(a[i]) + dt_tanhf(a[i]) + dt_powf(a[i], 2.5f);
      out[1] = *in;
      for (int i = 0; i < 600; i++) h[i] = dt_f32_f16(dt_erff(a[i])) + dt_f32_bf16(dt_rintf(a[i]));
      h[0] += dt_f32_f16((float)dt_floord(a[3]) + dt_acosf(a[2]) + dt_fmodf(a[0], a[1]));
    }
    """
    target = Target.parse(f"cpu:{isa}")
    assert compile_c(prelude(target) + text, target).stat().st_size > 0


def test_kernels_are_named_by_their_text():
    def kernel(value):
        text = f"void {ENTRY}(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {{ *(int *)p[0] = {value}; }}\n"
        return make_kernel(text, params=(), dims=(), tactic="test")

    a, b, again = kernel(3), kernel(4), kernel(3)
    assert a.entry == again.entry != b.entry and a.entry.startswith("k_")
    unit = translation_unit([a, b, again], Target.host())
    assert unit.count(f"void {a.entry}(") == 1
    library = ctypes.CDLL(str(compile_c(unit, Target.host())))
    out = ctypes.c_int(0)
    getattr(library, b.entry)(ctypes.c_int64(0), ctypes.c_int64(1), (ctypes.c_void_p * 1)(ctypes.addressof(out)), None)
    assert out.value == 4


def test_prelude_leaves_out_what_a_source_does_not_mention():
    target = Target.parse("cpu:avx512")
    whole = prelude(target)
    assert all(f"dt_exp_v{n}f" in whole for n in (4, 8, 16)) and "dt_sinf" in whole
    small = prelude(target, "x = dt_expf(y);")
    assert "v8f" not in small and "dt_sinf" not in small and "dt_expf" in small
    assert "dt_sinf" in prelude(target, "dt_sinf(x)") and "dt_exp_v8f" in prelude(target, "v8f x;")
    for text in ("", "float f(float x) { return dt_coshf(x) + dt_maxd(x, 1); }", "v8f f(v8f x) { return dt_erf_v8f(x); }"):
        assert compile_c(prelude(target, text) + text, target).stat().st_size > 0


def test_targets():
    assert Target.parse("cpu:avx2").vector_type == "v8f" and Target.parse("avx512").vector_floats == 16
    assert Target.parse("cpu") == Target.host() and Target.host().supports_host()
    assert Target.parse(Target.host().name) == Target.host()
    assert str(Target.parse("cpu:generic")) == "cpu:generic"
    assert isinstance(Target.parse("cuda:sm_90"), CudaTarget) and Target.parse("sm_80").name == "cuda:sm_80"
    for text in ("gpu", "cpu:sse9", "cuda:sm_1"):
        with pytest.raises(UsageError, match="expected cpu or one of"):
            Target.parse(text)


@pytest.mark.skipif(not os.path.exists("/usr/bin/gcc"), reason="no gcc here")
def test_another_compiler():
    with override(cc="gcc"):
        path = compile_c(prelude(Target.host()) + SOURCE, Target.host())
        assert ctypes.CDLL(str(path)).answer() == 42
