"""The edits of `dovetail.model.edit` as methods of a Model: each gives a new Model and leaves this one as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from dovetail.model.model import Model

_Types = Mapping[str, tuple[str, Sequence[int | str]]]


class Editing:
    """What `Model` can be turned into. Every method raises UsageError where the edit is not possible, and says what is."""

    def extract(self, inputs: Iterable[str] | None = None, outputs: Iterable[str] | None = None, *, types: _Types | None = None) -> Model:
        """The part that computes `outputs` from `inputs`; see `edit.extract`."""
        from dovetail.model import edit

        return edit.extract(cast("Model", self), inputs, outputs, types=types)

    def replace(
        self, inputs: Iterable[str], outputs: Iterable[str], by: str | Model, *, names: Mapping[str, str] | None = None, **options: Any
    ) -> Model:
        """One node (`by` an operator's name), or another model, for all between tensors; see `edit.replace` and `edit.replace_by_model`."""
        from dovetail.model import edit

        if isinstance(by, str):
            return edit.replace(cast("Model", self), inputs, outputs, by, **options)
        return edit.replace_by_model(cast("Model", self), inputs, outputs, by, names=names, **options)

    def replace_op(self, old: str, new: str, **options: Any) -> Model:
        """Every node of an operator as one of another; see `edit.replace_op`."""
        from dovetail.model import edit

        return edit.replace_op(cast("Model", self), old, new, **options)

    def rewrite(self, rules: Any = None) -> Model:
        """With rewrite rules applied; see `edit.rewrite`, which also says what they did."""
        from dovetail.model import edit

        return edit.rewrite(cast("Model", self), rules)[0]

    def insert(self, tensor: str, op: str, **options: Any) -> Model:
        """A node on a tensor, for all or some of its readers; see `edit.insert`."""
        from dovetail.model import edit

        return edit.insert(cast("Model", self), tensor, op, **options)

    def insert_qdq(
        self, tensor: str, scale: float, zero_point: int = 0, dtype: str = "int8", *, before: Iterable[str] = ()
    ) -> Model:
        """QuantizeLinear and DequantizeLinear on a tensor; see `edit.insert_qdq`."""
        from dovetail.model import edit

        return edit.insert_qdq(cast("Model", self), tensor, scale, zero_point, dtype, before=before)

    def delete(self, nodes: Iterable[str] = (), *, op: str | None = None) -> Model:
        """Without some nodes, whose input their readers get; see `edit.delete`."""
        from dovetail.model import edit

        return edit.delete(cast("Model", self), nodes, op=op)

    def rename(self, tensors: Mapping[str, str] | None = None, **options: Any) -> Model:
        """Other names of tensors, nodes and dimensions; see `edit.rename`."""
        from dovetail.model import edit

        return edit.rename(cast("Model", self), tensors=tensors, **options)

    def set_shape(self, shapes: Mapping[str, Sequence[int | str]]) -> Model:
        """Other shapes of inputs and outputs; see `edit.set_shape`."""
        from dovetail.model import edit

        return edit.set_shape(cast("Model", self), shapes)

    def set_dtype(self, dtypes: Mapping[str, str] | str | None = None, *, weights: str | None = None) -> Model:
        """Other element types of inputs, outputs or stored weights; see `edit.set_dtype`."""
        from dovetail.model import edit

        return edit.set_dtype(cast("Model", self), dtypes, weights=weights)

    def convert_opset(self, opset: int | None = None, *, ir_version: int | None = None) -> Model:
        """Another opset or IR version; see `edit.convert_opset`."""
        from dovetail.model import edit

        return edit.convert_opset(cast("Model", self), opset, ir_version=ir_version)

    def io_layout(self, layouts: Mapping[str, str]) -> Model:
        """NHWC or NCHW inputs and outputs; see `edit.io_layout`."""
        from dovetail.model import edit

        return edit.io_layout(cast("Model", self), layouts)

    def mark_output(self, names: Iterable[str], *, types: _Types | None = None) -> Model:
        """More outputs; see `edit.mark_output`."""
        from dovetail.model import edit

        return edit.mark_output(cast("Model", self), names, types=types)

    def unmark_output(self, names: Iterable[str]) -> Model:
        """Fewer outputs; see `edit.unmark_output`."""
        from dovetail.model import edit

        return edit.unmark_output(cast("Model", self), names)

    def freeze(self, values: Mapping[str, Any]) -> Model:
        """Inputs made weights; see `edit.freeze`."""
        from dovetail.model import edit

        return edit.freeze(cast("Model", self), values)

    def to_input(self, names: Iterable[str]) -> Model:
        """Weights made inputs; see `edit.to_input`."""
        from dovetail.model import edit

        return edit.to_input(cast("Model", self), names)

    def batch(self, size: int | str, *, inputs: Iterable[str] | None = None) -> Model:
        """Another batch, fixed or named; see `edit.batch`."""
        from dovetail.model import edit

        return edit.batch(cast("Model", self), size, inputs=inputs)

    def strip(self, *, least: int = 1024) -> Model:
        """Without the values of weights; see `edit.strip`."""
        from dovetail.model import edit

        return edit.strip(cast("Model", self), least=least)

    def restore(self, weights: Any, *, names: Mapping[str, str] | None = None, verify: bool = True) -> Model:
        """With the values of stripped weights again; see `edit.restore`."""
        from dovetail.model import edit

        return edit.restore(cast("Model", self), weights, names=names, verify=verify)
