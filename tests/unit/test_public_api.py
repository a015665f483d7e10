"""The names that users import."""

import inspect

import pytest

import dovetail


def test_all_is_sorted_and_complete() -> None:
    assert dovetail.__all__ == sorted(dovetail.__all__)
    assert dir(dovetail) == dovetail.__all__


@pytest.mark.parametrize("name", [n for n in dovetail.__all__ if not n.startswith("_")])
def test_every_name_resolves_documents_itself_and_claims_its_public_home(name: str) -> None:
    value = getattr(dovetail, name)
    assert value.__module__ == "dovetail"
    assert inspect.getdoc(value)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dovetail.nothing  # noqa: B018


def test_every_error_is_exported_and_derives_from_error() -> None:
    from dovetail.core import errors

    defined = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert defined <= set(dovetail.__all__)
    assert all(issubclass(getattr(dovetail, name), dovetail.Error) for name in defined)


@pytest.mark.parametrize("name", ["build", "load", "compare"])
def test_functions_are_annotated(name: str) -> None:
    signature = inspect.signature(getattr(dovetail, name))
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
