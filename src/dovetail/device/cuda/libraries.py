"""Steps that call a library: who prepares them, by the library's name.

A provider is a module with `prepare(driver, call, dims) -> LibraryCall`; it is imported when a plan first asks for it, so that
engines that use no library load on machines that have none.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from dovetail.core.errors import DeviceError
from dovetail.device.cuda.driver import Driver, Stream


class LibraryCall(Protocol):
    """A call that is ready: `workspace` bytes of device memory are its own while it runs."""

    workspace: int

    def launch(self, pointers: Sequence[int], workspace: int, stream: Stream) -> None:
        """Queue it; `pointers` are the addresses of the step's arguments in order."""
        ...


class _Fenced:
    """A library's call behind a fence.

    cuBLAS and cuDNN let their kernels start before the kernel ahead has ended, as ours do, and some of cuDNN's fused convolutions read an
    operand before they wait for it. Behind kernels that ask for their successor early, as ours do, that gave wrong results in graphs.
    """

    def __init__(self, call: LibraryCall, driver: Driver) -> None:
        self.call, self.workspace, self._driver = call, call.workspace, driver

    def launch(self, pointers: Sequence[int], workspace: int, stream: Stream) -> None:
        """See `LibraryCall.launch`."""
        self._driver.fence(stream)
        self.call.launch(pointers, workspace, stream)


Prepare = Callable[[Driver, Mapping[str, Any], Sequence[int]], LibraryCall]

_MODULES = {"cublaslt": "dovetail.device.cuda.cublaslt", "cudnn": "dovetail.device.cuda.cudnn"}
_prepared: dict[str, Prepare] = {}


def register(library: str, prepare: Prepare) -> None:
    """Let `prepare` make the calls of a library, in the place of the module that usually does."""
    _prepared[library] = prepare


def prepare(library: str, driver: Driver, call: Mapping[str, Any], dims: Sequence[int]) -> LibraryCall:
    """The call that a plan describes, for these dims; its kernels start when all that is queued ahead of it has ended.

    Raises:
        DeviceError: the library is not there, or does not do what is asked.
    """
    found = _prepared.get(library)
    if found is None:
        try:
            found = importlib.import_module(_MODULES[library]).prepare
        except (ImportError, KeyError) as error:
            raise DeviceError(
                f"cuda: the engine calls the library {library!r}, which cannot be used here ({error}); install it, or build the engine "
                "without library tactics"
            ) from None
        _prepared[library] = found
    return _Fenced(found(driver, call, dims), driver)
