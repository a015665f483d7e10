"""From PyTorch and TensorFlow to ONNX: one call each, checked at every step. Nothing here is imported before it is called."""
