"""Where the nodes of a directed graph are drawn: layers from top to bottom, ordered so that few edges cross, folded into columns.

The steps are those of Sugiyama's method, each in time that is near linear in nodes and edges, so that graphs of thousands of
kernels are laid out in a second or two:

1. layers by the longest path from the top;
2. waypoints where an edge passes a layer, as long as they are affordable;
3. orders within layers by sweeps of barycentres;
4. positions near those of neighbours, without overlaps;
5. the long strip that this gives is folded into columns, cut where few edges cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 212, 56
"""Size of a node."""

_GAP_X, _GAP_Y = 22, 30
_WAYPOINT = 14  # width that an edge takes where it passes a layer
_WAYPOINTS_PER_NODE = 6
_SWEEPS = 8
_ASPECT = 2.35  # of the room for the graph on usual screens
_MAX_COLUMNS, _LEAST_ROWS = 90, 5
_GUTTER = 36
_TRACK = 7
_MAX_TRACKS = 40

Point = tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """Positions of nodes (their upper left corners) and courses of edges.

    Attributes:
        edges: per edge its pieces in turn: smooth ones (even) and ones of right angles, between columns (odd), as lists of points.
    """

    nodes: list[Point]
    edges: list[list[list[Point]]]
    width: float
    height: float


def draw(count: int, edges: Sequence[tuple[int, int]]) -> Drawing:
    """Lay out a graph of nodes 0 .. count - 1, numbered in an order in which every edge goes from a lower to a higher number."""
    if not count:
        return Drawing([], [], 0, 0)
    layer = _layers(count, edges)
    chains, of_layer = _with_waypoints(count, edges, layer)
    above, below = _neighbours(len(of_layer), chains)
    rows: list[list[int]] = [[] for _ in range(max(of_layer) + 1)]
    for vertex, row in enumerate(of_layer):
        rows[row].append(vertex)
    _order(rows, above, below)
    widths = [WIDTH if v < count else _WAYPOINT for v in range(len(of_layer))]
    centre = _place(rows, above, below, widths)
    return _fold(count, rows, centre, widths, chains, of_layer)


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest paths from the top; what nothing feeds then sinks to just above its first reader."""
    layer = [0] * count
    following: list[list[int]] = [[] for _ in range(count)]
    fed = [False] * count
    for a, b in edges:
        following[a].append(b)
        fed[b] = True
    for a in range(count):
        for b in following[a]:
            layer[b] = max(layer[b], layer[a] + 1)
    for a in range(count):
        if not fed[a] and following[a]:
            layer[a] = min(layer[b] for b in following[a]) - 1
    return layer


def _with_waypoints(count: int, edges: Sequence[tuple[int, int]], layer: list[int]) -> tuple[list[list[int]], list[int]]:
    """Per edge the vertices that it passes, and the layer of every vertex; the longest edges go without waypoints if all are too many.

    Edges from one node share their waypoints, so that they run as one trunk from which branches go off.
    """
    furthest: dict[int, int] = {}
    for a, b in edges:
        furthest[a] = max(furthest.get(a, 0), layer[b] - layer[a] - 1)
    spans = sorted(furthest.values())
    room, longest = count * _WAYPOINTS_PER_NODE + 200, 0
    for span in spans:
        room -= span
        if room < 0:
            break
        longest = span
    of_layer, chains = list(layer), []
    trunks: dict[int, list[int]] = {}
    for a, b in edges:
        span, trunk = layer[b] - layer[a] - 1, trunks.setdefault(a, [])
        if span > longest:
            chains.append([a, b])
            continue
        for row in range(layer[a] + 1 + len(trunk), layer[b]):
            trunk.append(len(of_layer))
            of_layer.append(row)
        chains.append([a, *trunk[:span], b])
    return chains, of_layer


def _segments(chains: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Pairs of vertices that follow each other in a chain, each once."""
    return list(dict.fromkeys(pair for chain in chains for pair in pairwise(chain)))


def _neighbours(count: int, chains: Sequence[Sequence[int]]) -> tuple[list[list[int]], list[list[int]]]:
    above: list[list[int]] = [[] for _ in range(count)]
    below: list[list[int]] = [[] for _ in range(count)]
    for a, b in _segments(chains):
        above[b].append(a)
        below[a].append(b)
    return above, below


def _order(rows: list[list[int]], above: list[list[int]], below: list[list[int]]) -> None:
    """Sort every layer by the mean place of neighbours, downwards and upwards in turn."""
    place = [0.0] * len(above)
    for row in rows:
        for number, vertex in enumerate(row):
            place[vertex] = number
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        beside = above if down else below
        for row in rows if down else reversed(rows):
            if len(row) > 1:
                keys = {v: sum(place[n] for n in beside[v]) / len(beside[v]) if beside[v] else place[v] for v in row}
                row.sort(key=keys.__getitem__)
            middle = (len(row) - 1) / 2
            for number, vertex in enumerate(row):
                place[vertex] = number - middle  # rows of different lengths lie centred over each other


def _place(rows: list[list[int]], above: list[list[int]], below: list[list[int]], widths: list[int]) -> list[float]:
    """Centres of vertices along their layers: towards their neighbours', as far as the order leaves room."""
    centre = [0.0] * len(above)
    for row in rows:
        at = 0.0
        for vertex in row:
            centre[vertex] = at + widths[vertex] / 2
            at += widths[vertex] + _GAP_X
        for vertex in row:
            centre[vertex] -= (at - _GAP_X) / 2
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        beside = above if down else below
        for row in rows if down else reversed(rows):
            wish = [_mean([centre[n] for n in beside[v]], centre[v]) for v in row]
            for vertex, x in zip(row, _apart(wish, [widths[v] for v in row]), strict=True):
                centre[vertex] = x
    return centre


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _apart(wish: list[float], widths: list[int]) -> list[float]:
    """Centres in the given order, as near to those wished for as widths allow: neighbours that clash form blocks, at their mean."""
    blocks: list[list[float]] = []  # (sum of wishes, members, wished centre of the first member)
    offsets: list[float] = []
    members: list[int] = []
    for i, x in enumerate(wish):
        offsets.append(0.0 if i == 0 else offsets[-1] + (widths[i - 1] + widths[i]) / 2 + _GAP_X)
        blocks.append([x - offsets[i]])
        members.append(1)
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            a, b = members[-2], members[-1]
            merged = (blocks[-2][0] * a + blocks[-1][0] * b) / (a + b)
            blocks[-2:], members[-2:] = [[merged]], [a + b]
    found = []
    for (start,), size in zip(blocks, members, strict=True):
        found += [start] * size
    return [start + offset for start, offset in zip(found, offsets, strict=True)]


# ------------------------------------------------------------------ columns
def _fold(
    count: int, rows: list[list[int]], centre: list[float], widths: list[int], chains: list[list[int]], of_layer: list[int]
) -> Drawing:
    pitch = HEIGHT + _GAP_Y
    crossing = [0] * (len(rows) + 1)  # edges that cross the border above a layer
    for a, b in _segments(chains):
        crossing[of_layer[a] + 1] += 1
        crossing[of_layer[b] + 1] -= 1
    for i in range(1, len(crossing)):
        crossing[i] += crossing[i - 1]
    starts = _cuts(rows, centre, widths, crossing)
    column = [0] * len(rows)
    for number, (first, last) in enumerate(zip(starts, [*starts[1:], len(rows)], strict=True)):
        column[first:last] = [number] * (last - first)
    spans = []
    for first, last in zip(starts, [*starts[1:], len(rows)], strict=True):
        inside = [v for row in rows[first:last] for v in row]
        spans.append((min(centre[v] - widths[v] / 2 for v in inside), max(centre[v] + widths[v] / 2 for v in inside)))
    tracks = [0] * (len(starts) + 1)
    folded: dict[tuple[int, int], int] = {}  # tracks of trunks that go from one column to another
    for a, b in _segments(chains):
        low, high = column[of_layer[a]], column[of_layer[b]]
        if low != high and (a, high) not in folded:
            folded[a, high] = tracks[high] % _MAX_TRACKS
            tracks[high] += 1
    left: float = 0
    shift: list[float] = []
    for number, (begin, end) in enumerate(spans):
        left += 0 if number == 0 else _GUTTER + _TRACK * min(tracks[number], _MAX_TRACKS)
        shift.append(left - begin)
        left += end - begin
    margin = _TRACK * min(max(tracks, default=0), _MAX_TRACKS) + 14 if len(starts) > 1 else 0

    def at(vertex: int) -> Point:
        row = of_layer[vertex]
        return centre[vertex] + shift[column[row]], margin + (row - starts[column[row]]) * pitch

    height = max(margin + (last - first) * pitch - _GAP_Y for first, last in zip(starts, [*starts[1:], len(rows)], strict=True)) + margin
    paths = []
    for chain in chains:
        pieces: list[list[Point]] = [[]]
        for a, b in pairwise(chain):
            (ax, ay), (bx, by) = at(a), at(b)
            pieces[-1].append((ax, ay + (HEIGHT if a < count else HEIGHT / 2)))
            low, high = column[of_layer[a]], column[of_layer[b]]
            if low != high:
                track = folded[a, high]
                bottom, top = height - margin + 8 + _TRACK * track, margin - 8 - _TRACK * track
                gutter = spans[high][0] + shift[high] - _GUTTER / 2 - _TRACK * track
                pieces += [[pieces[-1][-1], (ax, bottom), (gutter, bottom), (gutter, top), (bx, top), (bx, by)], [(bx, by)]]
            if b < count:
                pieces[-1].append((bx, by))
        paths.append(pieces)
    corners = [at(v) for v in range(count)]
    return Drawing([(x - WIDTH / 2, y) for x, y in corners], paths, left, height)


def _cuts(rows: list[list[int]], centre: list[float], widths: list[int], crossing: list[int]) -> list[int]:
    """First layers of columns: of all numbers of columns the one with which the whole is seen largest on a screen."""
    low = [min(centre[v] - widths[v] / 2 for v in row) for row in rows]
    high = [max(centre[v] + widths[v] / 2 for v in row) for row in rows]
    best: tuple[float, list[int]] = (0.0, [0])
    for columns in range(1, max(1, min(_MAX_COLUMNS, len(rows) // _LEAST_ROWS)) + 1):
        starts = _starts(len(rows), columns, crossing)
        ends = [*starts[1:], len(rows)]
        width = sum(max(high[a:b]) - min(low[a:b]) + 1.5 * _GUTTER for a, b in zip(starts, ends, strict=True))
        height = max(b - a for a, b in zip(starts, ends, strict=True)) * (HEIGHT + _GAP_Y)
        scale = min(_ASPECT / width, 1 / height)
        if scale > best[0] * 1.02:  # a column more must be worth it
            best = (scale, starts)
    return best[1]


def _starts(rows: int, columns: int, crossing: list[int]) -> list[int]:
    """First layers of a number of columns of like length; cuts lie near their ideal places, where few edges cross."""
    slack = max(1, rows // columns // 6)
    starts = [0]
    for number in range(1, columns):
        ideal = round(rows * number / columns)
        near = range(max(starts[-1] + 1, ideal - slack), min(rows - 1, ideal + slack) + 1)
        if near:
            starts.append(min(near, key=lambda row, ideal=ideal: (crossing[row], abs(row - ideal))))  # type: ignore[misc]
    return starts
