"""Kernels that plugins bring compiled (PTX): serialized with how to launch them, and launched on a GPU."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dovetail.core import dims
from dovetail.tensorrt.device import device, ordinal
from dovetail.tensorrt.enums import PluginArgDataType
from dovetail.tensorrt.plugin.symbols import ISymExpr, ISymExprs, KernelLaunchParams

_PARTS = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")
_BITS = {PluginArgDataType.INT8: 8, PluginArgDataType.INT16: 16, PluginArgDataType.INT32: 32}


@dataclass
class CompiledKernel:
    """A kernel: its parameters are the inputs' addresses, scalar arguments, and the outputs' addresses.

    Attributes:
        name, code: of the function, and its PTX.
        launch_parts: programs over the extents of inputs (`i0_1`), by name.
        arguments: bits and program of each scalar argument.
    """

    name: str
    code: bytes
    launch_parts: dict[str, list[Any]]
    arguments: list[tuple[int, list[Any]]]
    _functions: dict[Any, Any] = field(default_factory=dict, repr=False)  # by the driver that loaded it

    @classmethod
    def of(cls, found: Any) -> CompiledKernel:
        """What a function of `aot_impl` returned: name, code, launch parameters, scalar arguments.

        Raises:
            TypeError: something else.
        """
        if not isinstance(found, tuple) or len(found) != 4:
            raise TypeError(f"got {found!r}, expected the name, the code, KernelLaunchParams and SymExprs")
        name, code, params, arguments = found
        if not isinstance(name, (str, bytes)) or not isinstance(code, (str, bytes)):
            raise TypeError(f"got a name of {type(name).__name__} and code of {type(code).__name__}, expected text")
        if not isinstance(params, KernelLaunchParams) or not isinstance(arguments, (ISymExprs, list, tuple)):
            raise TypeError(f"got {params!r} and {arguments!r}, expected KernelLaunchParams and SymExprs")
        scalars = list(arguments)
        if not all(isinstance(a, ISymExpr) for a in scalars):
            raise TypeError(f"got {scalars!r}, expected SymInt32 and the like")
        return cls(
            name.decode() if isinstance(name, bytes) else name,
            code.encode() if isinstance(code, str) else code,
            {part: dims.to_program(params._get(part)._dim) for part in _PARTS},
            [(_BITS[a.dtype], dims.to_program(a.expr._dim)) for a in scalars],
        )

    def to_bytes(self) -> bytes:
        """As bytes for an engine."""
        code = base64.b64encode(self.code).decode()
        return json.dumps({"name": self.name, "code": code, "launch": self.launch_parts, "arguments": self.arguments}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> CompiledKernel:
        """The kernel of what `to_bytes` gave."""
        tree = json.loads(data)
        return cls(tree["name"], base64.b64decode(tree["code"]), tree["launch"], [(bits, p) for bits, p in tree["arguments"]])

    def launch(self, shapes: Sequence[tuple[int, ...]], inputs: Sequence[int], outputs: Sequence[int], stream: int) -> None:
        """Queue the kernel in a stream.

        Raises:
            RuntimeError: engines are for a CPU, or blocks have more than one axis.
            DeviceError: the driver refuses it.
        """
        where = device()
        if where == "cpu":
            raise RuntimeError("the plugin's kernel is compiled for a GPU, and engines run on the CPU; define tensorrt.plugin.impl, too")
        from dovetail.device.cuda import driver
        from dovetail.device.cuda.driver import Arguments, Launch, Stream

        gpu = driver(ordinal(where))
        env = {f"i{i}_{axis}": n for i, shape in enumerate(shapes) for axis, n in enumerate(shape)}
        sizes = {part: dims.run_program(program, env) for part, program in self.launch_parts.items()}
        if sizes["block_y"] != 1 or sizes["block_z"] != 1:
            raise RuntimeError(f"got blocks of {sizes['block_y']} and {sizes['block_z']} threads along y and z, expected 1")
        if gpu not in self._functions:
            self._functions[gpu] = gpu.load(self.code + b"\0", self.name, sizes["shared_mem"])
        scalars = [dims.run_program(program, env) % (1 << bits) for bits, program in self.arguments]
        values = [*inputs, *scalars, *outputs]
        # Scalars take the place of pointers: a kernel reads as many of the eight bytes as its parameter has.
        arguments = Arguments([0] * len(values), [])
        for position, value in enumerate(values):
            arguments.set_pointer(position, value)
        grid = sizes["grid_x"], sizes["grid_y"], sizes["grid_z"]
        gpu.launch(Launch(self._functions[gpu], grid, sizes["block_x"], sizes["shared_mem"], arguments), Stream(stream))
