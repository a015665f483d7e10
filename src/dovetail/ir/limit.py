"""A limit on how many optional rewrites a build may make: with it, the one that spoils a result is found by halving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Rewritten:
    """One rewrite that a build has made: by which pass or rule, and at which node."""

    what: str
    where: str


@dataclass
class Limit:
    """How many rewrites may still be made, and those that were.

    Builds are deterministic: with a smaller limit, a build makes the first rewrites of those that it makes with a larger one.
    """

    most: int | None = None
    made: list[Rewritten] = field(default_factory=list)


_limit: ContextVar[Limit | None] = ContextVar("rewrite limit", default=None)


@contextmanager
def limited(most: int | None) -> Iterator[Limit]:
    """Let the builds inside make at most so many rewrites (None: all), and note which."""
    limit = Limit(most)
    token = _limit.set(limit)
    try:
        yield limit
    finally:
        _limit.reset(token)


@contextmanager
def unlimited() -> Iterator[None]:
    """Work on copies that says nothing of the engine: trial runs, measurements."""
    token = _limit.set(None)
    try:
        yield
    finally:
        _limit.reset(token)


def exhausted() -> bool:
    """Whether no further rewrite may be made."""
    limit = _limit.get()
    return limit is not None and limit.most is not None and len(limit.made) >= limit.most


def remaining(wanted: int) -> int:
    """How many of so many rewrites may still be made."""
    limit = _limit.get()
    return wanted if limit is None or limit.most is None else max(0, min(wanted, limit.most - len(limit.made)))


def made(what: str, where: str) -> None:
    """Note a rewrite."""
    limit = _limit.get()
    if limit is not None:
        limit.made.append(Rewritten(what, where))
