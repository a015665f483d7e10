"""What a template does to its accumulators before it stores them, as vector C text.

A template knows where its extra operands lie relative to a tile; what is computed with them is the
business of an `Epilogue`, usually made from the body of a fused group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Body = Callable[[str, Sequence[str]], tuple[Sequence[str], Sequence[str]]]


def store_accumulator(acc: str, operands: Sequence[str]) -> tuple[list[str], list[str]]:
    """The body of a template without an epilogue: the accumulator is the only output."""
    return [], [acc]


@dataclass(frozen=True)
class Epilogue:
    """Vector code between accumulation and store.

    Attributes:
        operands: how many extra operands the body reads.
        outputs: how many results it makes, one per output buffer.
        body: `body(acc, operands) -> (statements, results)`: C variables in, C statements and one
            expression per output back. All are vectors of fp32; the statements are placed in a
            scope of their own, and each operand is a loaded vector.
        costly: whether the code is long (a polynomial, say). It is then not inlined behind the
            accumulators, where it would spill them, but run over the tile just written to L1.
    """

    operands: int = 0
    outputs: int = 1
    body: Body = store_accumulator
    costly: bool = False


@dataclass(frozen=True)
class Access:
    """How a buffer moves with the rows and columns of an output.

    Attributes:
        column: elements between columns: 1, or 0 for one value per row.
        pointer: C name of the pointer to the element of row 0 and column 0 of a tile.
        row: element distance (C text) of neighbours on the two axes (outer, inner) of a tile's rows.
    """

    pointer: str
    row: tuple[str, str]
    column: int = 1

    def offset(self, outer: str, inner: str) -> str:
        """C text of the element offset of a row from the pointer."""
        terms = [_times(i, s) for i, s in ((outer, self.row[0]), (inner, self.row[1]))]
        kept = [t for t in terms if t != "0"]
        return " + ".join(kept) or "0"

    @property
    def fixed(self) -> bool:
        """Whether every row reads the same values."""
        return all(_literal(s) == 0 for s in self.row)


def _literal(text: str) -> int | None:
    number = text.removesuffix("L")
    return int(number) if number.lstrip("-").isdigit() else None


def _times(index: str, stride: str) -> str:
    a, b = _literal(index), _literal(stride)
    if a == 0 or b == 0:
        return "0"
    if a is not None and b is not None:
        return f"{a * b}L"
    return stride if a == 1 else index if b == 1 else f"{index} * {stride}"
