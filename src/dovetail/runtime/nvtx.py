"""NVTX ranges around runs and steps, which Nsight Systems shows over the kernels that they launch.

The functions come from the `nvtx` package, or from NVIDIA's library itself where it is found; nothing is loaded until ranges are asked for.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dovetail.core.errors import UsageError
from dovetail.engine.plan import Plan, Step

DOMAIN = "dovetail"
_LIBRARIES = ("libnvToolsExt.so.1", "libnvToolsExt.so", "libnvtx3interop.so.1", "libnvtx3interop.so")
_FOLDERS = ("nvtx/lib", "cu13/lib")
_SHOWN = 4


@dataclass(frozen=True)
class Ranges:
    """Opens and closes nested ranges of the calling thread."""

    push: Callable[[str], object]
    pop: Callable[[], object]

    @contextmanager
    def around(self, name: str) -> Iterator[None]:
        """A range with a name, closed whatever happens."""
        self.push(name)
        try:
            yield
        finally:
            self.pop()


@functools.cache
def ranges() -> Ranges:
    """The functions, looked for once.

    Raises:
        UsageError: there are none here.
    """
    try:
        package = importlib.import_module("nvtx")
    except ImportError:
        return _of_library()
    return Ranges(lambda name: package.push_range(message=name, domain=DOMAIN), lambda: package.pop_range(domain=DOMAIN))


def _of_library() -> Ranges:
    from dovetail.device.cuda.shared_library import wheel_folders

    inside = [root / folder / name for root in wheel_folders() for folder in _FOLDERS for name in _LIBRARIES]
    said = ""
    for name in (*(str(path) for path in inside if path.is_file()), *_LIBRARIES):
        try:
            return of_library(name)
        except (OSError, AttributeError) as error:
            said = said or str(error)
    raise UsageError(
        f"nvtx: got a request for ranges, but neither the nvtx package nor {_LIBRARIES[0]} is here ({said}); pip install nvtx, "
        "or unset DOVETAIL_NVTX"
    )


def of_library(path: str | Path) -> Ranges:
    """The functions of a library.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it has no such functions.
    """
    library = ctypes.CDLL(str(path))
    push, pop = library.nvtxRangePushA, library.nvtxRangePop
    push.argtypes, push.restype = [ctypes.c_char_p], ctypes.c_int
    pop.argtypes, pop.restype = [], ctypes.c_int
    return Ranges(lambda name: push(name.encode("utf-8", "replace").replace(b"\0", b"?")), pop)


def run_name(plan: Plan) -> str:
    """What the range of a run is called."""
    return f"dovetail run ({plan.target})"


def steps_name(steps: Sequence[Step]) -> str:
    """What the range of some steps is called: the user's nodes and the tactic."""
    names = list(dict.fromkeys(name for step in steps for name in step.origin))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{' + '.join(names[:_SHOWN]) or steps[0].kernel}{more} [{', '.join(dict.fromkeys(s.tactic for s in steps))}]"


def host_name(origin: Sequence[str], op: str) -> str:
    """What the range of a step on the host is called."""
    return f"{' + '.join(origin[:_SHOWN]) or op} [host {op}]"
