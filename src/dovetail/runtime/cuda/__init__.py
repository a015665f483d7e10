"""The runtime of engines for NVIDIA GPUs: the same executor, with memory on the device and CUDA graphs for native segments."""

from dovetail.runtime.cuda.context import Binding, CudaContext, Pending
from dovetail.runtime.cuda.engine import CudaEngine

__all__ = ["Binding", "CudaContext", "CudaEngine", "Pending"]
