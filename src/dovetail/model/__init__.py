"""ONNX models as what a user works on: simplified, edited, rewritten by rules, checked against what they were."""
