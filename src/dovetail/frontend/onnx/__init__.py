"""ONNX importers, one module per family; each function imports one ONNX op as IR ops."""
