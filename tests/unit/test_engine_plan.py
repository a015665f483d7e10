"""The plan as data: exact round trips; whatever is damaged or contradictory is refused."""

import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.core.dims import maximum, sym
from dovetail.core.dtypes import F16
from dovetail.core.errors import EngineError, ExecutionError, PlanFormatError, PlanVersionError
from dovetail.engine.check import check
from dovetail.engine.codec import MAX_DEPTH, dumps, loads
from dovetail.engine.plan import (
    Buffer,
    ControlSegment,
    DimAttr,
    HostSegment,
    KernelRef,
    Plan,
    Port,
    Program,
    Symbol,
    SymbolDef,
    attribute,
    postfix,
)
from dovetail.runtime import RuntimeEngine
from tests.unit.native_plans import (
    KERNELS,
    N,
    buffer,
    chain,
    host_binary,
    kernel_binary,
    plan,
    scaled,
    tensor,
)


def rich_plan():
    """A plan with a segment of every kind and attributes of every type."""
    body = Program(
        (
            buffer(0, "input", 1, dtype="i64"),
            buffer(1, "input", 1, dtype="bool"),
            buffer(2, "input", N),
        ),
        (
            Port("i", tensor(0, dtype="i64")),
            Port("c", tensor(1, dtype="bool")),
            Port("s", tensor(2, N)),
        ),
        (Port("c", tensor(1, dtype="bool")), Port("s", tensor(2, N))),
    )
    u = sym("u0")
    main = Program(
        (
            buffer(0, "input", N, name="x"),
            buffer(1, "host", u, dtype="i64"),
            Buffer(2, "host", "f32", postfix(N)),
            buffer(3, "input", 1, dtype="i64", name="n"),
        ),
        (Port("x", tensor(0, N)), Port("n", tensor(3, dtype="i64"))),
        (Port("nonzero", tensor(1, 1, u, dtype="i64")), Port("y", tensor(2, N))),
        (
            HostSegment(
                "NonZero",
                (tensor(0, N),),
                (tensor(1, 1, u, dtype="i64"),),
                {
                    "dims": attribute((N + 1, 3, (maximum(N, 4),))),
                    "to": attribute(F16),
                    "alpha": attribute(-math.inf),
                    "beta": 0.1,
                    "flag": True,
                    "mode": "näher",
                    "none": None,
                },
                (SymbolDef("u0", 1, 0),),
                ("find",),
            ),
            ControlSegment(
                "Loop",
                (body,),
                (tensor(3, dtype="i64"), None, tensor(0, N)),
                (tensor(2, N),),
                carried=1,
            ),
        ),
    )
    return Plan(
        "cpu:avx2",
        main,
        symbols=(Symbol("N", 1, 64),),
        kernels=(KernelRef("k_x", 2, 1, (postfix(sym("d0") * 4), (64,))),),
        meta={"a": [1, 2.5, None, {"b": "c"}]},
        certificate={"error": 1e-7},
    )


@pytest.mark.parametrize(
    "example", [plan(chain("k_double", "k_add")), scaled(), rich_plan(), Plan("cpu", Program())]
)
def test_round_trip_is_exact_and_canonical(example):
    data = dumps(example)
    assert loads(data) == example
    assert dumps(loads(data)) == data


def test_valid_plans_pass_the_check():
    check(plan(chain("k_double", "k_increment")))
    check(scaled())
    check(rich_plan())


def edit(document, path, value):
    target = document
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value


MAIN = ("plan", "main")
STEP = (*MAIN, "segments", 0, "steps", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 99, "update Dovetail"),
        (("format",), True, "got format True"),
        (("extra",), 1, "the keys"),
        (("plan", "target"), 5, "expected a string"),
        (("plan", "surprise"), 5, "the fields of a Plan"),
        ((*MAIN, "buffers"), {}, "a list of at most"),
        ((*MAIN, "buffers", 0, "kind"), "magic", "one of weight"),
        ((*MAIN, "buffers", 0, "id"), 1, "its position as id"),
        ((*MAIN, "buffers", 0, "id"), True, "an int64"),
        ((*MAIN, "buffers", 0, "id"), 1.0, "an int64"),
        ((*MAIN, "buffers", 0, "dtype"), "f31", "a known dtype"),
        ((*MAIN, "buffers", 0, "size"), ["$N", "*"], "a postfix program"),
        ((*MAIN, "buffers", 0, "size"), ["$N", 2], "leaves one value"),
        ((*MAIN, "buffers", 0, "size"), [], "1 to 512 instructions"),
        ((*MAIN, "buffers", 0, "size"), [1] * 1000, "1 to 512 instructions"),
        ((*MAIN, "buffers", 0, "size"), ["$M"], "known symbols, got M"),
        ((*MAIN, "buffers", 0, "size"), 1 << 70, "a postfix program"),
        ((*MAIN, "buffers", 2, "alias"), 2, "without a cycle"),
        ((*MAIN, "buffers", 2, "alias"), 77, "a buffer as alias"),
        ((*MAIN, "buffers", 2, "alias"), 0, "writable storage"),
        ((*MAIN, "buffers", 2, "kind"), "weight", "the name of a weight value"),
        ((*MAIN, "buffers", 2, "kind"), "host", "to be written before"),
        ((*MAIN, "inputs", 0, "tensor", "buffer"), 9, "a buffer of the program"),
        ((*MAIN, "inputs", 0, "tensor", "buffer"), 1, "an input buffer"),
        ((*MAIN, "outputs", 0, "tensor", "buffer"), -1, "a buffer of the program"),
        ((*MAIN, "segments", 0, "segment"), "gpu", "a native, host or control segment"),
        ((*STEP, "kernel"), "k_evil", "a kernel of the plan"),
        ((*STEP, "args"), [], "2 arguments"),
        ((*STEP, "dims"), ["$N", 4], "1 dims"),
        ((*STEP, "args", 0, "buffer"), 100, "buffers of the program"),
        ((*STEP, "max_threads"), -1, "max_threads"),
        ((*MAIN, "taps", 0, "segment"), 3, "a segment of the program"),
        (("plan", "kernels", 0, "entry"), "a b", "a C identifier"),
        (("plan", "symbols", 0, "lower"), -1, "lower <= upper"),
    ],
)
def test_damage_is_refused_with_its_place(path, value, message):
    document = json.loads(dumps(plan(chain("k_double", "k_increment"))))
    edit(document, path, value)
    with pytest.raises((PlanFormatError, PlanVersionError), match=message):
        check(loads(json.dumps(document).encode()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "damaged JSON"),
        (b"\xff\xfe", "damaged JSON"),
        (b"[1]", "no format version"),
        (b'{"format":1,"format":1,"plan":{}}', "duplicate keys"),
        (b'{"format":NaN}', "NaN is not JSON"),
        (b"[" * 100_000, "damaged JSON"),
    ],
)
def test_other_documents_are_refused(text, message):
    with pytest.raises(PlanFormatError, match=message):
        loads(text)


def test_nesting_is_bounded():
    inner = Program()
    for _ in range(MAX_DEPTH + 2):
        inner = Program(segments=(ControlSegment("If", (inner, inner), (None,), ()),))
        document = {"format": 1, "plan": {"target": "cpu", "main": {}}}
    nested = {}
    for _ in range(MAX_DEPTH + 2):
        nested = {
            "segments": [
                {"segment": "control", "kind": "If", "regions": [nested], "inputs": [],
                 "outputs": []}
            ]
        }  # fmt: skip
    document["plan"]["main"] = nested
    with pytest.raises(PlanFormatError, match="levels"):
        loads(json.dumps(document).encode())


def test_offsets_and_extents_are_checked_when_bound():
    import numpy as np

    def run(document):
        engine = RuntimeEngine(
            loads(json.dumps(document).encode()), kernels=[kernel_binary()], host=host_binary()
        )
        return engine.run({"x": np.ones(4, np.float32)})

    document = json.loads(dumps(plan(chain("k_double", "k_increment"))))
    assert run(document)["y"].tolist() == [3, 3, 3, 3]
    outside = copy.deepcopy(document)
    edit(outside, (*STEP, "args", 1), {"buffer": 2, "offset": 17})
    with pytest.raises(PlanFormatError, match="reaches bytes 17"):
        run(outside)
    for kernel in document["plan"]["kernels"]:
        kernel["extents"] = [["$d0", 4, "*"]] * kernel["pointers"]
    assert run(document)["y"].tolist() == [3, 3, 3, 3]
    edit(document, (*STEP, "dims"), [5])
    with pytest.raises(PlanFormatError, match="reaches bytes 0 to 20 of buffer 0 of 16 bytes"):
        run(document)
    huge = json.loads(dumps(plan(chain("k_double", "k_increment"))))
    edit(huge, (*MAIN, "buffers", 2, "size"), 1 << 60)
    with pytest.raises(ExecutionError, match="got a size"):
        run(huge)


values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.integers(), st.text(max_size=4),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.none()),
    st.sampled_from(["$N", "*", "host", "arena", "output", "weight", "i64", "str"]),
)  # fmt: skip


def places(node, path=()):
    """Every path in a JSON document."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


DOCUMENTS = [
    json.loads(dumps(p)) for p in (plan(chain("k_double", "k_add")), rich_plan(), scaled())
]


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_plans_raise_engine_errors_or_stay_valid(data):
    document = copy.deepcopy(data.draw(st.sampled_from(DOCUMENTS)))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(document))))
        if data.draw(st.booleans()):
            edit(document, path, data.draw(values))
        else:
            target = document
            for key in path[:-1]:
                target = target[key]
            del target[path[-1]]
        if not document:
            break
    try:
        result = loads(json.dumps(document).encode())
        check(result)
    except EngineError:
        return
    assert loads(dumps(result)) == result


def test_kernels_of_the_helpers_are_declared():
    assert {k.entry for k in plan(chain("k_double")).kernels} == set(KERNELS)
    assert attribute([1, N]) == (1, DimAttr(postfix(N)))
