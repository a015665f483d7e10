"""Progress with an ETA on stderr; silent where nobody watches."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]


@contextmanager
def progress(args: argparse.Namespace) -> Iterator[Progress | None]:
    """A callback `(stage, done, total)` that draws one live line per stage; None if stderr is no terminal or --quiet."""
    if args.quiet or not sys.stderr.isatty() or os.environ.get("NO_COLOR"):  # noqa: TID251 - not a flag of ours
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}
        last: dict[str, int] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            elif done < last[stage]:
                bars.reset(tasks[stage])  # the same again, with other work: the speed of before says nothing
            last[stage] = done
            bars.update(tasks[stage], completed=done, total=total)

        yield update
