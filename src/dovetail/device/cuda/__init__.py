"""NVIDIA GPUs: the driver, memory, arrays of other packages, library calls. NVIDIA's packages are imported on first use."""

from dovetail.device.cuda.driver import (
    ALIGNMENT,
    Arguments,
    Driver,
    Launch,
    Properties,
    TensorMap,
    current_ordinal,
    driver,
    require_capability,
)
from dovetail.device.cuda.memory import DeviceMemory

__all__ = [
    "ALIGNMENT",
    "Arguments",
    "DeviceMemory",
    "Driver",
    "Launch",
    "Properties",
    "TensorMap",
    "current_ordinal",
    "driver",
    "require_capability",
]
