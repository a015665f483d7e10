"""The runtime of engines for NVIDIA GPUs: the same executor, with memory on the device and CUDA graphs for native segments."""

from dovetail.runtime.cuda.engine import CudaEngine, Pending

__all__ = ["CudaEngine", "Pending"]
