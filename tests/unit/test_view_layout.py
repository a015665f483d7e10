"""Layered drawings: nodes do not overlap, edges go down within a column, and large graphs fold."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from dovetail.view.layout import HEIGHT, WIDTH, Drawing, draw


def overlaps(drawing: Drawing) -> list[tuple[int, int]]:
    """Pairs of nodes that overlap."""
    order = sorted(range(len(drawing.nodes)), key=lambda i: drawing.nodes[i])
    found = []
    for place, i in enumerate(order):
        x, y = drawing.nodes[i]
        for j in order[place + 1 :]:
            if drawing.nodes[j][0] >= x + WIDTH:
                break
            if abs(drawing.nodes[j][1] - y) < HEIGHT:
                found.append((i, j))
    return found


def random_graph(rng: random.Random, count: int) -> list[tuple[int, int]]:
    """Edges from lower to higher numbers: mostly near ones, some far."""
    near = {(i, min(count - 1, i + rng.randrange(1, 6))) for i in range(count - 1)}
    far = {tuple(sorted(rng.sample(range(count), 2))) for _ in range(count // 8)}
    return sorted(e for e in near | far if e[0] < e[1])  # type: ignore[misc]


@pytest.mark.parametrize("count", [1, 2, 7, 40, 300])
def test_nodes_lie_apart_and_inside(count: int) -> None:
    edges = random_graph(random.Random(count), count)
    drawing = draw(count, edges)
    assert overlaps(drawing) == []
    assert all(0 <= x <= drawing.width - WIDTH and 0 <= y <= drawing.height - HEIGHT for x, y in drawing.nodes)
    assert len(drawing.edges) == len(edges)


def test_edges_end_at_their_nodes() -> None:
    edges = random_graph(random.Random(5), 120)
    drawing = draw(120, edges)
    for (a, b), pieces in zip(edges, drawing.edges, strict=True):
        (ax, ay), (bx, by) = drawing.nodes[a], drawing.nodes[b]
        assert pieces[0][0] == (ax + WIDTH / 2, ay + HEIGHT)
        assert pieces[-1][-1] == (bx + WIDTH / 2, by)
        for smooth in pieces[::2]:
            assert all(low[1] <= high[1] for low, high in pairwise(smooth)), "within a column, edges go down"
        for before, after in pairwise(pieces):
            assert before[-1] == after[0], "pieces join"


def test_a_long_chain_folds_into_columns() -> None:
    drawing = draw(400, [(i, i + 1) for i in range(399)])
    assert 0.5 < drawing.width / drawing.height < 4
    assert len({x for x, _ in drawing.nodes}) > 5


def test_a_chain_is_straight() -> None:
    drawing = draw(5, [(i, i + 1) for i in range(4)])
    assert len({x for x, _ in drawing.nodes}) == 1
    assert [y for _, y in drawing.nodes] == sorted(y for _, y in drawing.nodes)


def test_parallel_branches_share_layers() -> None:
    drawing = draw(4, [(0, 1), (0, 2), (1, 3), (2, 3)])
    assert drawing.nodes[1][1] == drawing.nodes[2][1] and drawing.nodes[1][0] != drawing.nodes[2][0]
    top, left, right, bottom = (x for x, _ in drawing.nodes)
    assert abs(top - (left + right) / 2) < 1 and abs(bottom - top) < 1, "where branches part and join lies between them"


def test_an_empty_graph_and_one_without_edges() -> None:
    assert draw(0, []).nodes == []
    assert overlaps(draw(9, [])) == []


def test_the_same_graph_is_drawn_the_same() -> None:
    edges = random_graph(random.Random(1), 60)
    assert draw(60, edges) == draw(60, edges)
