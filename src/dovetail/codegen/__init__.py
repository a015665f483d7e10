"""From fused groups to machine code: loop IR, lowering, C and NumPy printers, compiler driver."""
