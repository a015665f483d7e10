"""CPU kernels: C templates for contractions and windows, and the tactics that use them."""
