"""A process that compiles Triton sources to machine code, one request at a time.

    python -m dovetail.codegen.triton_worker

Requests and answers are lines of JSON on stdin and stdout; `triton_compiler` starts the processes and reads the answers. A crash of
the compiler or an endless run therefore harms no build. Needs neither a GPU nor a driver.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def compile_one(request: dict[str, Any]) -> dict[str, Any]:
    """Compile one source file; see `triton_compiler.Compiled` for what comes back."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    entry = request["entry"]
    spec = importlib.util.spec_from_file_location(entry, request["source"])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, entry)
    names = function.arg_names
    types = [*request["types"], *["i32"] * (len(names) - len(request["types"]))]
    attrs = {(i,): [["tt.divisibility", 16]] for i, aligned in enumerate(request["aligned"]) if aligned}
    source = ASTSource(function, dict(zip(names, types, strict=True)), {}, attrs)
    options = {
        "num_warps": request["warps"], "num_stages": request["stages"], "launch_pdl": request["pdl"], "enable_fp_fusion": True,
    }  # fmt: skip
    kernel = triton.compile(source, target=GPUTarget("cuda", request["capability"], 32), options=options)
    meta = kernel.metadata
    output = Path(request["output"])
    output.write_bytes(kernel.asm["cubin"])
    usage = _resources(output)
    if request.get("keep"):
        for name in ("ptx", "ttgir"):
            output.with_suffix(f".{name}").write_text(kernel.asm[name])
    return {
        "name": meta.name, "threads": 32 * meta.num_warps, "shared": meta.shared, "pdl": bool(request["pdl"]),
        "cluster": getattr(meta, "num_ctas", 1) or 1,
        "scratch": meta.global_scratch_size or 0, "scratch_align": max(1, meta.global_scratch_align or 1),
        "descriptors": [_descriptor(d) for d in getattr(meta, "tensordesc_meta", None) or ()], **usage,
    }  # fmt: skip


def _descriptor(given: Any) -> dict[str, Any]:
    """A record of `tensordesc_meta`."""
    fields = given if isinstance(given, dict) else given._asdict()
    return {
        "swizzle": int(fields["swizzle"]), "element": int(fields["elem_size"]), "kind": int(fields["elem_type"]),
        "box": [int(b) for b in fields["block_size"]],
    }  # fmt: skip


def _resources(cubin: Path) -> dict[str, int]:
    """Registers per thread and bytes of local memory (spills and stack) that a kernel uses."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    shown = subprocess.run([str(tool), "-res-usage", str(cubin)], capture_output=True, text=True, check=False).stdout
    registers, stack = re.search(r"REG:(\d+)", shown), re.search(r"STACK:(\d+)", shown)
    return {"registers": int(registers[1]) if registers else 0, "stack": int(stack[1]) if stack else 0}


def _clear_cache() -> None:
    """Remove the intermediate forms that Triton keeps: nobody asks for them again."""
    folder = os.environ.get("TRITON_CACHE_DIR")  # noqa: TID251 - Triton's, set by whoever started this
    for path in Path(folder).iterdir() if folder else ():
        shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    """Answer requests until stdin ends."""
    # Whatever the compiler prints goes into a file that the answer quotes; the real stdout stays for answers.
    answers = os.fdopen(os.dup(1), "w")
    messages = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process
    os.dup2(messages.fileno(), 1)
    os.dup2(messages.fileno(), 2)
    for line in sys.stdin:
        messages.seek(0)
        messages.truncate()
        try:
            answer = compile_one(json.loads(line))
        except (OSError, ImportError) as error:  # a full disk or a broken installation is no fault of the kernel
            answer = {"error": f"{type(error).__name__}: {error}", "unusable": True}
        except BaseException as error:  # of any kind: the next request may be fine
            messages.seek(0)
            lines = [text.strip() for text in messages.read().splitlines() if "error" in text.lower()]
            answer = {"error": "; ".join([f"{type(error).__name__}: {error}", *lines])[:2000]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        _clear_cache()


if __name__ == "__main__":
    main()
