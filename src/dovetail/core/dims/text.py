"""Dims from the text that `str` prints."""

from __future__ import annotations

import re

from dovetail.core.dims.expression import Dim, checked, sym
from dovetail.core.dims.values import OPERATIONS
from dovetail.core.errors import ParseError

_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_][\w.]*)|(//|[-+*%(),]))")


def parse(text: str) -> Dim:
    """The Dim written as `text`, as `str` prints it.

    Raises:
        ParseError: not a dimension expression.
    """
    tokens: list[str] = []
    position = 0
    stripped = text.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None or len(tokens) > 4096:
            raise ParseError(f"dimension {text!r}: unexpected text at column {position}")
        tokens.append(match.group().strip())
        position = match.end()
    parser = _Parser(tokens, text)
    result = parser.sum(0)
    if parser.position != len(tokens):
        raise ParseError(f"dimension {text!r}: unexpected {tokens[parser.position]!r}")
    return result


class _Parser:
    """Recursive descent over tokens: sum = term (+|- term)*, term = unary (*|//|% unary)*."""

    def __init__(self, tokens: list[str], text: str) -> None:
        self.tokens, self.text, self.position = tokens, text, 0

    def take(self, *accepted: str) -> str | None:
        if self.position < len(self.tokens) and self.tokens[self.position] in accepted:
            self.position += 1
            return self.tokens[self.position - 1]
        return None

    def expect(self, token: str) -> None:
        if self.take(token) is None:
            raise ParseError(f"dimension {self.text!r}: expected {token!r}")

    def sum(self, depth: int) -> Dim:
        if depth > 64:
            raise ParseError(f"dimension {self.text[:40]!r}…: nested too deeply")
        value = self.term(depth)
        while operator := self.take("+", "-"):
            value = OPERATIONS[operator](value, self.term(depth))
        return value

    def term(self, depth: int) -> Dim:
        value = self.unary(depth)
        while operator := self.take("*", "//", "%"):
            value = OPERATIONS[operator](value, self.unary(depth))
        return value

    def unary(self, depth: int) -> Dim:
        if self.take("-"):
            return self.unary(depth + 1) * -1
        if self.take("("):
            value = self.sum(depth + 1)
            self.expect(")")
            return value
        if self.position >= len(self.tokens):
            raise ParseError(f"dimension {self.text!r}: unexpected end")
        token = self.tokens[self.position]
        self.position += 1
        if token.isdigit():
            return checked(int(token))
        if token in ("min", "max") and self.take("("):
            a = self.sum(depth + 1)
            self.expect(",")
            b = self.sum(depth + 1)
            self.expect(")")
            return OPERATIONS[token](a, b)
        if token[0].isalpha() or token[0] == "_":
            return sym(token)
        raise ParseError(f"dimension {self.text!r}: unexpected {token!r}")
