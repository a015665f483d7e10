"""`ParserError`, and how errors of Dovetail's importer read in the words of TensorRT's parser."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Sequence

from dovetail.tensorrt.enums import ErrorCode

# Codes whose text has no node in it.
_OF_THE_MODEL = (ErrorCode.MODEL_DESERIALIZE_FAILED, ErrorCode.REFIT_FAILED)


class ParserError:
    """Why a model, or one of its nodes, was refused. Printed, it reads as TensorRT's: node, operator, function, code, cause."""

    __slots__ = ("_code", "_desc", "_func", "_node", "_node_name", "_node_operator", "_stack")

    def __init__(
        self,
        code: ErrorCode,
        desc: str,
        func: str,
        node: int = -1,
        node_name: str = "",
        node_operator: str = "",
        stack: Sequence[str] = (),
    ) -> None:
        self._code, self._desc, self._func = code, desc, func
        self._node, self._node_name, self._node_operator = node, node_name, node_operator
        self._stack = list(stack)

    def code(self) -> ErrorCode:
        """What kind of error it is."""
        return self._code

    def desc(self) -> str:
        """The cause."""
        return self._desc

    def file(self) -> str:
        """The source file that found the error."""
        return "dovetail/tensorrt/parser.py"

    def line(self) -> int:
        """The line in `file`; 0, as errors come from many places."""
        return 0

    def func(self) -> str:
        """The function that found the error."""
        return self._func

    def node(self) -> int:
        """The position of the node in the model; -1 where the error is of no node."""
        return self._node

    def node_name(self) -> str:
        """The name of the node."""
        return self._node_name

    def node_operator(self) -> str:
        """The operator of the node."""
        return self._node_operator

    def local_function_stack(self) -> list[str]:
        """The model's own functions that the node is inside of, the outermost first."""
        return list(self._stack)

    def local_function_stack_size(self) -> int:
        """How many functions of the model the node is inside of."""
        return len(self._stack)

    def __str__(self) -> str:
        cause = f"({self._func}): {self._code.name}: {self._desc}"
        if self._code in _OF_THE_MODEL or self._node < 0:
            return cause
        text = f"In node {self._node} with name: {self._node_name} and operator: {self._node_operator} {cause}"
        for depth, function in enumerate(self._stack):
            text += f"\n{'  ' * depth}in local function {function}"
        return text

    __repr__ = __str__


# Words in a message of the importer -> the code that TensorRT has for that; the first that is found counts.
_CODES = (
    (r"plugin", ErrorCode.UNSUPPORTED_NODE),
    (r"no importer", ErrorCode.UNSUPPORTED_NODE),
    (r"\battribute", ErrorCode.UNSUPPORTED_NODE_ATTR),
    (r"\b(dtype|element type|type)\b", ErrorCode.UNSUPPORTED_NODE_DATATYPE),
    (r"\bdynamic|run-time|known", ErrorCode.UNSUPPORTED_NODE_DYNAMIC),
    (r"\bshape|\brank|dimension", ErrorCode.UNSUPPORTED_NODE_SHAPE),
    (r"\binput", ErrorCode.UNSUPPORTED_NODE_INPUT),
)


class ErrorList:
    """The errors that a parser or its refitter keeps; subclasses append to `_errors`."""

    _errors: list[ParserError]

    @property
    def num_errors(self) -> int:
        """How many errors there are since the last parse or refit began, or `clear_errors`."""
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        """An error by its index.

        Raises:
            IndexError: there are not so many.
        """
        return self._errors[operator.index(index)]

    def clear_errors(self) -> None:
        """Forget all errors."""
        self._errors = []


def code_of(message: str, attributes: Collection[str]) -> ErrorCode:
    """The code for a message of the importer.

    Args:
        attributes: names of the node's.
    """
    named = re.match(r"\w+: (\w+), got ", message)
    if named is not None and named[1] in attributes:
        return ErrorCode.UNSUPPORTED_NODE_ATTR
    found = next((code for words, code in _CODES if re.search(words, message, re.IGNORECASE)), None)
    if found is None:
        return ErrorCode.INVALID_NODE if "got " in message and "expected " in message else ErrorCode.UNSUPPORTED_NODE
    return found
