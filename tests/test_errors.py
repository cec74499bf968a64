import pickle

import pytest

from megatron_reason import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.ReasonError)
]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_message_has_four_parts_and_survives_pickling(cls: type[errors.ReasonError]) -> None:
    error = pickle.loads(pickle.dumps(cls("a.yaml:3  train.lr", "it is -1.", "Use 1e-4.")))
    assert type(error) is cls
    assert str(error) == f"{cls.__name__}  a.yaml:3  train.lr\n  it is -1.\n  Use 1e-4."
    assert error.way_out == "Use 1e-4."


def test_every_error_refines_a_builtin_one() -> None:
    builtin = (ValueError, RuntimeError, ArithmeticError)
    assert all(issubclass(cls, builtin) for cls in CLASSES if cls is not errors.ReasonError)
    drawn = errors.__doc__ or ""
    assert all(cls.__name__ in drawn for cls in CLASSES)
