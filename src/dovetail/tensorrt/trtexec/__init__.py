"""`trtexec`: builds, runs and times engines, with the flags and the output of TensorRT's tool of that name.

    dovetail trtexec --onnx=model.onnx --saveEngine=model.engine --fp16
    trtexec --loadEngine=model.engine --shapes=x:8x3x224x224 --dumpProfile

`options.py` says what a command line means, `build.py` makes the engine, `inference.py` runs it, `report.py` words the times.
"""

from dovetail.tensorrt.trtexec.command import main

__all__ = ["main"]
