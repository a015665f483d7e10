"""Build, run and time an engine with the flags and the output of TensorRT's trtexec.

    dovetail trtexec --onnx=model.onnx --saveEngine=model.engine --optShapes=x:8x3x224x224
    dovetail trtexec --loadEngine=model.engine --dumpProfile --exportTimes=times.json
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dovetail trtexec`: all words are its own, `--help` too."""
    parser.prefix_chars = "\0"
    parser.add_argument("flags", nargs="*")


def run(args: argparse.Namespace) -> int:
    """Run trtexec."""
    from dovetail.tensorrt.trtexec import main

    return main(args.flags)
