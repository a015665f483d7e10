"""Cuts a failing model down: fewer outputs, then node after node replaced by an input or an initializer of what it made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.fuzz.case import Case


def reduced(case: Case, fails: Callable[[Case], bool]) -> Case:
    """The smallest case found that fails still; `fails` is asked of every candidate."""
    best = case.pruned()
    if not fails(best):
        best = case
    for name in best.outputs:
        trial = replace(best, outputs=(name,)).pruned()
        if fails(trial):
            best = trial
            break
    shrinking = True
    while shrinking:
        shrinking = False
        for trial in _smaller(best):
            if fails(trial):
                best, shrinking = trial, True
                break
    return best


def _smaller(case: Case) -> list[Case]:
    """Cases with a little less, the most promising first."""
    found = []
    for name in case.outputs if len(case.outputs) > 1 else ():
        found.append(replace(case, outputs=tuple(n for n in case.outputs if n != name)).pruned())
    made = {n: i for i, node in enumerate(case.nodes) for n in node.output if n}
    # An output that is made from another value of the model: take that one instead.
    for fixed in (True, False):
        for index in range(len(case.nodes)):
            try:
                trial = case.without(index, fixed=fixed)
            except ValueError:
                continue
            if trial.nodes and set(trial.outputs) & (set(made) - set(case.nodes[index].output)):
                found.append(trial)
    for output in case.outputs:
        if output in made:
            for name in case.nodes[made[output]].input:
                if name in made:
                    found.append(replace(case, outputs=tuple(dict.fromkeys(name if n == output else n for n in case.outputs))).pruned())
    if case.listed:
        found.append(replace(case, listed=frozenset()))
    if case.samples > 1:
        found.append(replace(case, samples=1))
    return [c for c in found if c.nodes]
