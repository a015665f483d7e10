"""CPU kernels: C templates for contractions and windows, generated loops, and the tactics that use them.

Importing this package registers the tactics; those imported first are preferred.
"""

from dovetail.kernels.cpu import window_tactic  # noqa: I001 - the order is the order of preference
from dovetail.kernels.cpu import winograd_tactic, conv_tactic, matmul_tactic, attention_tactic, recurrent_tactic
from dovetail.kernels.cpu import loop_tactic, weight_loop_tactic, weight_pack_tactic, plugin_tactic

__all__ = [
    "attention_tactic", "conv_tactic", "loop_tactic", "matmul_tactic", "plugin_tactic", "recurrent_tactic",
    "weight_loop_tactic", "weight_pack_tactic", "window_tactic", "winograd_tactic",
]  # fmt: skip
