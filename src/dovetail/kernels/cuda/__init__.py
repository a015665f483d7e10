"""CUDA kernels: Triton templates for contractions, generated loops, library calls, and the tactics that use them.

Importing this package registers the tactics; those imported first are preferred.
"""

from dovetail.kernels.cuda import conv_vector  # noqa: I001 - the order is the order of preference
from dovetail.kernels.cuda import conv_stem
from dovetail.kernels.cuda import depthwise_tactic, pool_tactic, conv_tactic, conv_tma
from dovetail.kernels.cuda import matmul_tactic, cublaslt_tactic, cudnn_tactic
from dovetail.kernels.cuda import attention_tactic, recurrent_tactic, selection_tactic
from dovetail.kernels.cuda import loop_tactic, weight_loop_tactic, plugin_tactic

__all__ = [
    "attention_tactic", "conv_stem", "conv_tactic", "conv_tma", "conv_vector", "cublaslt_tactic", "cudnn_tactic", "depthwise_tactic",
    "loop_tactic", "matmul_tactic", "plugin_tactic", "pool_tactic", "recurrent_tactic", "selection_tactic", "weight_loop_tactic",
]  # fmt: skip
