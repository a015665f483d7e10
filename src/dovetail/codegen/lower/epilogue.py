"""Epilogues of GEMM and convolution templates: pointwise bodies printed on vectors of fp32.

    code = epilogue_code(body, names, "v16f", prefix="e")

- `body`: the fusion body (a Graph, anchor included). Everything between the anchor's output and the
  body's outputs must be pointwise; `epilogue_reason(body, anchor)` gives None or says what is not.
- `names`: C variables of type `vector` for the anchor's output value and for every other value that the
  outputs need and that the template has loaded: bias (a vector of channels), residual (same shape), scalars
  (`dt_set_v16f(p[0])`). Keys are *body* values (body inputs or the anchor's output). Narrow floats
  are already widened to fp32.
- `vector`: "v16f", "v8f", "v4f" (see `vmath.prelude`) or "float", for scalar tails.
- `code.statements`: C statements, each variable prefixed with `prefix`; put them in a block after the loads.
- `code.results`: per body output, the name of the fp32 variable that holds it. The template stores it, rounding
  narrow floats with `dt_f32_f16` / `dt_f32_bf16`.

`side_inputs(body, anchor)` lists the body inputs that the template must load, in order.
Arithmetic is the same for every vector width, so tails and bodies agree bit for bit.
"""

from __future__ import annotations
