"""Opens engines and runs them; needs no compiler and no onnx."""
