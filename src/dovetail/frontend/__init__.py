"""Reading models of other formats into the IR."""
