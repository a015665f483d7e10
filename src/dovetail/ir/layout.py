"""Where the elements of a value lie in memory: axis order, halo, pitch and channel offset."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail.core.dims import Dim


@dataclass(frozen=True)
class Layout:
    """The physical placement of a tensor.

    Attributes:
        order: logical axes from outermost to innermost in memory.
        halo: (low, high) extra elements around each logical axis; () means none anywhere.
        pitch: elements between neighbours on the axis before the innermost (a row of the innermost axis); None = dense.
        offset: elements before this tensor's first element inside such a row (a slice of a concat buffer).
        fill: value that the halo holds.
        explicit: strides given outright (views: slices, transposes, reshapes, parts of a concat); `offset` then counts
            from the start of the viewed buffer and may be symbolic, `order` ranks the axes by stride, halo and pitch are unused.
    """

    order: tuple[int, ...]
    halo: tuple[tuple[int, int], ...] = ()
    pitch: int | None = None
    offset: Dim = 0
    fill: float = 0.0
    explicit: tuple[Dim, ...] | None = None

    def _extents(self, shape: tuple[Dim, ...]) -> list[Dim]:
        halo = self.halo or ((0, 0),) * len(shape)
        return [d + low + high for d, (low, high) in zip(shape, halo, strict=True)]

    def strides(self, shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
        """Elements between neighbours on each logical axis."""
        if self.explicit is not None:
            return self.explicit
        extents = self._extents(shape)
        strides: list[Dim] = [0] * len(shape)
        step: Dim = 1
        for position, axis in enumerate(reversed(self.order)):
            strides[axis] = step
            if position == 0 and self.pitch is not None:
                step = self.pitch
            else:
                step = step * extents[axis]
        return tuple(strides)

    def base(self, shape: tuple[Dim, ...]) -> Dim:
        """Element offset of the logical index (0, 0, …) from the start of the buffer."""
        total: Dim = self.offset
        if self.halo and self.explicit is None:
            for stride, (low, _) in zip(self.strides(shape), self.halo, strict=True):
                total = total + stride * low
        return total

    def size(self, shape: tuple[Dim, ...]) -> Dim:
        """Elements of the whole buffer, halo and row pitch included."""
        extents = self._extents(shape)
        total: Dim = 1
        for position, axis in enumerate(reversed(self.order)):
            total = total * (self.pitch if position == 0 and self.pitch is not None else extents[axis])
        return total

    @property
    def is_row_major(self) -> bool:
        """Whether this is the dense default order."""
        return self.explicit is None and self.order == tuple(range(len(self.order))) and self.is_dense

    @property
    def is_dense(self) -> bool:
        """Whether the tensor has no halo and no neighbours in its rows."""
        return self.pitch is None and self.explicit is None and not any(low or high for low, high in self.halo)

    def transposed(self, perm: tuple[int, ...]) -> Layout:
        """The layout of Transpose{perm} of a value of this layout, over the same memory."""
        inverse = {axis: new for new, axis in enumerate(perm)}
        if self.explicit is not None:
            strides = tuple(self.explicit[axis] for axis in perm)
            return Layout(tuple(inverse[a] for a in self.order), offset=self.offset, explicit=strides)
        halo = tuple(self.halo[axis] for axis in perm) if self.halo else ()
        return Layout(tuple(inverse[a] for a in self.order), halo, self.pitch, self.offset, self.fill)

    def __str__(self) -> str:
        text = ",".join(map(str, self.order))
        if self.explicit is not None:
            strides = ";".join(str(d).replace(" ", "") for d in self.explicit)
            return f"<{text} strides {strides} offset {str(self.offset).replace(' ', '')}>"
        if any(low or high for low, high in self.halo):
            text += " halo " + ",".join(f"{low}:{high}" for low, high in self.halo)
        if self.pitch is not None:
            text += f" pitch {self.pitch} offset {self.offset}"
        if self.fill:
            text += f" fill {self.fill!r}"
        return f"<{text}>"


def strided(strides: tuple[Dim, ...], offset: Dim) -> Layout:
    """A view with the given strides and element offset into its buffer."""
    # Axes rank by stride where that is known; unknown strides keep the logical order.
    ranked = sorted(range(len(strides)), key=lambda a: (-_known(strides[a]), a))
    return Layout(tuple(ranked), offset=offset, explicit=strides)


def _known(stride: Dim) -> int:
    # A symbolic stride spans at least one whole dimension, so it ranks outside the literal ones.
    return abs(stride) if isinstance(stride, int) else 2**62 + sum(len(m) for m, _ in stride.terms)


def row_major(rank: int) -> Layout:
    """The dense layout in logical order."""
    return Layout(tuple(range(rank)))


def channels_last(rank: int) -> Layout:
    """N, spatial…, C in memory for a logical [N, C, spatial…]."""
    return Layout((0, *range(2, rank), 1)) if rank >= 2 else row_major(rank)
