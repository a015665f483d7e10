"""IR text back to a graph; `print_module(parse_module(t)) == t` for every printed t."""

from __future__ import annotations

import json
import re
from typing import Any

from dovetail.core.dims import Dim, parse
from dovetail.core.dtypes import DTYPES
from dovetail.core.errors import ParseError
from dovetail.ir.graph import Graph, Module, Time, Value
from dovetail.ir.layout import Layout
from dovetail.ir.printer import VERSION
from dovetail.ir.types import SequenceType, TensorType, Type

_MAX_DEPTH = 32
_NUMBER = re.compile(r"-?(?:inf|nan|\d+(?:\.\d*)?(?:e[-+]?\d+)?)", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z_][\w.:\-]*")
_NAME = re.compile(r"[A-Za-z0-9_.\-/]+")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def parse_module(text: str) -> Module:
    """The module printed as `text`, without weight bytes.

    Raises:
        ParseError: with the line number.
    """
    cursor = _Cursor(text)
    cursor.expect("dovetail.ir")
    version = cursor.number()
    if version != VERSION:
        raise cursor.error(f"got version {version}, expected {VERSION}")
    graph = Graph("main")
    scope: dict[str, Value] = {}
    while cursor.peek("@"):
        cursor.expect("@")
        function = cursor.word()
        if function not in ("weights", "shapes", "main"):
            raise cursor.error(f"got function @{function}, expected @weights, @shapes or @main")
        before = set(graph.nodes)
        returned = _body(cursor, graph, scope, 0)
        if function == "main":
            graph.set_outputs(returned)
            graph.symbol_times |= {s: Time.RUN for node in graph.nodes if node not in before for s in node.attrs.get("symbols", ())}
    cursor.end()
    graph.update_times()
    return Module(graph)


class _Cursor:
    """Position in the text; white space and line comments that are not origins are skipped."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def error(self, message: str) -> ParseError:
        return ParseError(f"IR line {self.text.count(chr(10), 0, self.at) + 1}: {message}")

    def skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def peek(self, token: str) -> bool:
        self.skip()
        return self.text.startswith(token, self.at)

    def take(self, token: str) -> bool:
        if self.peek(token):
            self.at += len(token)
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise self.error(f"got {self.text[self.at : self.at + 20]!r}, expected {token!r}")

    def match(self, pattern: re.Pattern[str], what: str) -> str:
        self.skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self.error(f"got {self.text[self.at : self.at + 20]!r}, expected {what}")
        self.at = found.end()
        return found.group()

    def word(self) -> str:
        return self.match(_WORD, "a name")

    def number(self) -> int | float:
        text = self.match(_NUMBER, "a number")
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)

    def string(self) -> str:
        text = self.match(_STRING, "a quoted string")
        try:
            return str(json.loads(text))
        except ValueError as error:
            raise self.error(f"bad string {text[:40]}") from error

    def value_name(self) -> str:
        self.expect("%")
        return self.string() if self.text.startswith('"', self.at) else self.match(_NAME, "a value name")

    def until(self, stops: str) -> str:
        """Text up to a stop character outside parentheses."""
        depth, start = 0, self.at
        while self.at < len(self.text):
            c = self.text[self.at]
            if depth == 0 and c in stops:
                return self.text[start : self.at]
            depth += (c == "(") - (c == ")")
            self.at += 1
        raise self.error("unexpected end")

    def end(self) -> None:
        self.skip()
        if self.at != len(self.text):
            raise self.error(f"unexpected {self.text[self.at : self.at + 20]!r}")


def _dim(cursor: _Cursor, stops: str) -> Dim:
    text = cursor.until(stops)
    try:
        return parse(text)
    except ParseError as error:
        raise cursor.error(str(error)) from error


def _type(cursor: _Cursor) -> Type:
    if cursor.take("seq("):
        element = _type(cursor)
        cursor.expect(")")
        assert isinstance(element, TensorType)
        return SequenceType(element)
    name = cursor.word()
    if name not in DTYPES:
        raise cursor.error(f"got dtype {name!r}, expected one of {', '.join(DTYPES)}")
    cursor.expect("[")
    shape: list[Dim] = []
    while not cursor.take("]"):
        shape.append(_dim(cursor, ",]"))
        cursor.take(",")
    layout = None
    if cursor.text.startswith("<", cursor.at):
        cursor.expect("<")
        layout = _layout(cursor, cursor.until(">"), len(shape))
        cursor.expect(">")
    return TensorType(DTYPES[name], tuple(shape), layout)


_LAYOUT = re.compile(
    r"(?P<order>[\d,]*)(?: strides (?P<strides>\S*) offset (?P<view>\S+))?"
    r"(?: halo (?P<halo>[\d:,]+))?(?: pitch (?P<pitch>\d+) offset (?P<offset>\d+))?(?: fill (?P<fill>\S+))?"
)


def _layout(cursor: _Cursor, text: str, rank: int) -> Layout:
    found = _LAYOUT.fullmatch(text)
    if found is None:
        raise cursor.error(f"bad layout <{text}>")
    order = tuple(int(a) for a in found["order"].split(",") if a)
    halo = tuple((int(p.split(":")[0]), int(p.split(":")[1])) for p in (found["halo"] or "").split(",") if ":" in p)
    if sorted(order) != list(range(rank)) or (halo and len(halo) != rank):
        raise cursor.error(f"layout <{text}> does not fit rank {rank}")
    if found["strides"] is not None:
        try:
            strides = tuple(parse(t) for t in found["strides"].split(";") if t)
            return Layout(order, offset=parse(found["view"]), explicit=strides)
        except ParseError as error:
            raise cursor.error(str(error)) from error
    pitch = int(found["pitch"]) if found["pitch"] else None
    return Layout(order, halo, pitch, int(found["offset"] or 0), float(found["fill"] or 0.0))


def _attribute(cursor: _Cursor, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        raise cursor.error("attributes nested too deeply")
    cursor.skip()
    if cursor.peek('"'):
        return cursor.string()
    if cursor.take("("):
        items = []
        while not cursor.take(")"):
            items.append(_attribute(cursor, depth + 1))
            cursor.take(",")
        return tuple(items)
    if cursor.take("dim("):
        value = _dim(cursor, ")")
        cursor.expect(")")
        return value
    for text, constant in (("true", True), ("false", False), ("none", None)):
        if cursor.take(text):
            return constant
    if cursor.peek("inf") or cursor.peek("nan") or cursor.peek("-") or cursor.text[cursor.at : cursor.at + 1].isdigit():
        return cursor.number()
    name = cursor.word()
    if name in DTYPES:
        return DTYPES[name]
    raise cursor.error(f"got attribute {name!r}, expected a number, string, dtype, dim(…) or tuple")


def _parameters(cursor: _Cursor, graph: Graph, scope: dict[str, Value]) -> None:
    cursor.expect("(")
    while not cursor.take(")"):
        name = cursor.value_name()
        cursor.expect(":")
        cursor.skip()
        _define(cursor, scope, graph.add_input(name, _type(cursor)), name)
        cursor.take(",")


def _define(cursor: _Cursor, scope: dict[str, Value], value: Value, name: str) -> None:
    if name in scope:
        raise cursor.error(f"%{name} is defined twice")
    scope[name] = value


def _use(cursor: _Cursor, scope: dict[str, Value]) -> Value:
    name = cursor.value_name()
    if name not in scope:
        raise cursor.error(f"%{name} is not defined")
    return scope[name]


def _body(cursor: _Cursor, graph: Graph, scope: dict[str, Value], depth: int) -> list[Value]:
    if depth > _MAX_DEPTH:
        raise cursor.error("regions nested too deeply")
    _parameters(cursor, graph, scope)
    cursor.expect("{")
    while not cursor.take("return"):
        _node(cursor, graph, scope, depth)
    returned = []
    while cursor.peek("%"):
        returned.append(_use(cursor, scope))
        cursor.take(",")
    cursor.expect("}")
    return returned


def _node(cursor: _Cursor, graph: Graph, scope: dict[str, Value], depth: int) -> None:
    names: list[str] = []
    while cursor.peek("%"):
        names.append(cursor.value_name())
        cursor.take(",")
    if names:
        cursor.expect("=")
    op = cursor.word()
    cursor.expect("(")
    inputs: list[Value | None] = []
    while not cursor.take(")"):
        inputs.append(None if cursor.take("_") else _use(cursor, scope))
        cursor.take(",")
    attrs: dict[str, Any] = {}
    if cursor.take("{"):
        while not cursor.take("}"):
            key = cursor.word()
            cursor.expect("=")
            attrs[key] = _attribute(cursor)
            cursor.take(",")
    types: list[Type] = []
    if names:
        cursor.expect(":")
        cursor.skip()
        types.append(_type(cursor))
        while cursor.take(","):
            cursor.skip()
            types.append(_type(cursor))
    if len(types) != len(names):
        raise cursor.error(f"{op} has {len(names)} results and {len(types)} types")
    origin: list[str] = []
    if cursor.take("#"):
        origin.append(cursor.string())
        while cursor.take(","):
            origin.append(cursor.string())
    regions: list[Graph] = []
    while cursor.take("region"):
        region = Graph(cursor.string())
        region.set_outputs(_body(cursor, region, {}, depth + 1))
        regions.append(region)
    node = graph.add(op, inputs, attrs, types=types, names=names, regions=regions, origin=origin)
    for name, value in zip(names, node.outputs, strict=True):
        _define(cursor, scope, value, name)
        if value.name != name:
            raise cursor.error(f"%{name} is defined twice")
