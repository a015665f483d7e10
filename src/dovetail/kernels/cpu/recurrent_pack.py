"""Packing of recurrent weights at run time, for models that compute them or take them as inputs."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.core.dims import Dim
from dovetail.kernels.cpu.text import DimTable
from dovetail.ops.packing import recurrent_panels


@dataclass(frozen=True)
class RecurrentPackConfig:
    """Weights [D, gates * H, K] of any strides to the panels of the op PackRecurrent.

    Attributes:
        strides: elements along (D, rows, K).
        phases, vectors, lanes: as in PackRecurrent.
    """

    directions: int
    hidden: int
    depth: int
    strides: tuple[Dim, Dim, Dim]
    phases: tuple[int, ...]
    vectors: int
    lanes: int

    @property
    def panels(self) -> tuple[int, ...]:
        """Panels of each phase."""
        return recurrent_panels(self.hidden, self.phases, self.vectors, self.lanes)

    @property
    def floats(self) -> int:
        """Size of the result."""
        return self.directions * sum(self.panels) * self.vectors * self.lanes * self.depth


def emit(config: RecurrentPackConfig, dims: DimTable) -> str:
    """C source; parameters are the weights and the result. Threads share the panels."""
    width, total = config.vectors * config.lanes, sum(config.panels)
    direction, row, column = map(dims.text, config.strides)
    out = [
        "void @ENTRY@(int64_t tid, int64_t nt, void *const *p, const int64_t *d) {",
        "  const float *X = p[0]; float *Y = p[1];",
        f"  const int64_t N = {config.directions * total};",
        "  for (int64_t u = N * tid / nt; u < N * (tid + 1) / nt; u++) {",
        f"    const float *const x = X + u / {total} * {direction};",
        f"    float *const y = Y + u * {width * config.depth};",
        f"    const int64_t j = u % {total};",
        f"    for (int64_t n = 0; n < {width}; n++) {{",
        "      int64_t gate, unit;",
    ]
    panel = gate = 0
    for index, (panels, count) in enumerate(zip(config.panels, config.phases, strict=True)):
        units = width // count
        panel += panels
        condition = f"if (j < {panel}) " if index + 1 < len(config.phases) else ""
        out.append(
            f"      {'else ' if index else ''}{condition}{{ gate = {gate} + n / {units};"
            f" unit = (j - {panel - panels}) * {units} + n % {units}; }}"
        )
        gate += count
    return "\n".join(
        [
            *out,
            f"      const float *const r = x + (gate * {config.hidden} + unit) * {row};",
            f"      if (unit < {config.hidden}) for (int64_t k = 0; k < {config.depth}; k++) y[k * {width} + n] = r[k * {column}];",
            f"      else for (int64_t k = 0; k < {config.depth}; k++) y[k * {width} + n] = 0.0f;",
            "    }",
            "  }",
            "}",
        ]
    ) + "\n"
