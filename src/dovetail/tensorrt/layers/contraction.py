"""Matrix products and einsum."""

from __future__ import annotations

from collections.abc import Sequence

from dovetail.ir.graph import Value
from dovetail.tensorrt.enum_type import expect
from dovetail.tensorrt.enums import LayerType, MatrixOperation
from dovetail.tensorrt.layer import ILayer
from dovetail.tensorrt.network_base import NetworkBase
from dovetail.tensorrt.scope import Scope
from dovetail.tensorrt.settings import Setting, of, text
from dovetail.tensorrt.tensor import ITensor


class IMatrixMultiplyLayer(ILayer):
    """A product of matrices, or of vectors, on the last axes; the axes ahead are repeated where they are 1."""

    __slots__ = ()
    _layer_type, _label, _unifies = LayerType.MATRIX_MULTIPLY, "Matrix Multiply", True
    op0 = Setting[MatrixOperation](of(MatrixOperation), MatrixOperation.NONE, "How the first input is read.")
    op1 = Setting[MatrixOperation](of(MatrixOperation), MatrixOperation.NONE, "How the second input is read.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        a, b = inputs
        assert a is not None and b is not None
        a, b = _operand(net, a, self.op0, -2), _operand(net, b, self.op1, -1)
        product = net.op("MatMul", a, b)
        gone = [axis for axis, op in ((-2, self.op0), (-1, self.op1)) if op is MatrixOperation.VECTOR]
        return [net.op("Squeeze", product, [len(product.shape) + axis for axis in gone]) if gone else product]


def _operand(net: Scope, value: Value, operation: MatrixOperation, axis: int) -> Value:
    """An operand as a stack of matrices; a vector is a row on the left and a column on the right."""
    rank = len(value.shape)
    if operation is MatrixOperation.TRANSPOSE:
        turned: Value = net.op("Transpose", value, perm=(*range(rank - 2), rank - 1, rank - 2))
        return turned
    if operation is MatrixOperation.VECTOR:
        matrix: Value = net.op("Unsqueeze", value, [rank + 1 + axis])
        return matrix
    return value


class IEinsumLayer(ILayer):
    """A sum of products in Einstein's notation, `ij,jk->ik`."""

    __slots__ = ()
    _layer_type, _label, _unifies = LayerType.EINSUM, "Einsum", True
    equation = Setting[str](text, "", "The equation, in lower-case letters.")

    def _lower(self, net: Scope, inputs: list[Value | None]) -> Sequence[Value]:
        return [net.op("Einsum", *inputs, equation=self.equation)]


class AddContractions(NetworkBase):
    """The `add_*` methods of this family."""

    def add_matrix_multiply(
        self, input0: ITensor, op0: MatrixOperation, input1: ITensor, op1: MatrixOperation
    ) -> IMatrixMultiplyLayer | None:
        """Multiply matrices."""
        return self._add(
            IMatrixMultiplyLayer,
            [expect(ITensor, input0, "add_matrix_multiply: input0"), expect(ITensor, input1, "add_matrix_multiply: input1")],
            op0=expect(MatrixOperation, op0, "add_matrix_multiply: op0"),
            op1=expect(MatrixOperation, op1, "add_matrix_multiply: op1"),
        )

    def add_einsum(self, inputs: Sequence[ITensor], equation: str) -> IEinsumLayer | None:
        """Sum products as an equation says."""
        given = [expect(ITensor, t, "add_einsum: inputs") for t in inputs]
        expect(str, equation, "add_einsum: equation")
        if not given:
            self._refuse("add_einsum: got no inputs, expected at least one")
            return None
        return self._add(IEinsumLayer, given, equation=equation)
