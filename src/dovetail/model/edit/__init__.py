"""Edits of ONNX models: each a function of a `dovetail.Model` that gives a new one, checked, and leaves the first as it is.

One file per family; `draft.py` has what they share. `checked.py` holds results against the original where the meaning must stay.
"""

from dovetail.model.edit.batch import Batch, batch, rebatch
from dovetail.model.edit.border import freeze, mark_output, to_input, unmark_output
from dovetail.model.edit.dtypes import set_dtype
from dovetail.model.edit.extract import extract
from dovetail.model.edit.layout import io_layout
from dovetail.model.edit.nodes import delete, insert, insert_qdq
from dovetail.model.edit.opset import convert_opset
from dovetail.model.edit.rename import rename
from dovetail.model.edit.replace import replace, replace_by_model, replace_op
from dovetail.model.edit.rewriting import rewrite
from dovetail.model.edit.shapes import set_shape
from dovetail.model.edit.stripping import restore, strip

__all__ = [
    "Batch",
    "batch",
    "convert_opset",
    "delete",
    "extract",
    "freeze",
    "insert",
    "insert_qdq",
    "io_layout",
    "mark_output",
    "rebatch",
    "rename",
    "replace",
    "replace_by_model",
    "replace_op",
    "restore",
    "rewrite",
    "set_dtype",
    "set_shape",
    "strip",
    "to_input",
    "unmark_output",
]
