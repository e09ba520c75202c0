"""The total of several losses: its gradient is the weight, and nothing that is not trained gets in."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.reference.masked_loss import total_loss

WEIGHTS = {"lm": 1.0, "detection": 1.0, "teacher": 0.3, "off": 0.0}


def losses() -> dict[str, Tensor]:
    numbers = {"lm": 2.0, "detection": 0.5, "teacher": 10.0, "off": 7.0}
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in numbers.items()}


def test_the_gradient_of_each_is_its_weight() -> None:
    parts = losses()
    total = total_loss(parts, WEIGHTS)
    assert total.value.ndim == 0
    assert total.value.item() == 2.0 + 0.5 + 0.3 * 10.0
    assert {name: x.item() for name, x in total.weighted.items()} == {"lm": 2, "detection": 0.5, "teacher": 3, "off": 0}
    grads = torch.autograd.grad(total.value, list(parts.values()), retain_graph=True)
    assert [x.item() for x in grads] == list(WEIGHTS.values())
    (alone,) = torch.autograd.grad(total.weighted["teacher"], parts["teacher"])
    assert alone.item() == 0.3


def test_mixed_dtypes_are_added_in_the_widest() -> None:
    parts = {"a": torch.tensor(1.0, requires_grad=True), "b": torch.tensor(1e-12, dtype=torch.float64).requires_grad_()}
    assert total_loss(parts, {"a": 1, "b": 1}).value.item() == 1.0 + 1e-12


def test_constants_are_declared_or_weigh_nothing_or_nothing_is_recorded() -> None:
    parts = losses() | {"teacher": torch.tensor(10.0)}
    with pytest.raises(ValueError, match=r"^losses: 'teacher' has weight 0\.3 and no gradient"):
        total_loss(parts, WEIGHTS)
    declared = total_loss(parts, WEIGHTS, constant=["teacher"])
    assert declared.value.item() == 2.0 + 0.5 + 3.0
    assert total_loss(parts, WEIGHTS | {"teacher": 0.0}).value.item() == 2.5
    with torch.no_grad():
        assert total_loss(parts, WEIGHTS).value.item() == 2.0 + 0.5 + 3.0


def test_nan_is_not_hidden_by_a_weight_of_zero() -> None:
    parts = losses() | {"off": torch.tensor(math.nan, requires_grad=True)}
    assert total_loss(parts, WEIGHTS).value.isnan()


@pytest.mark.parametrize(
    ("parts", "weights", "options", "error", "message"),
    [
        ({}, {}, {}, ValueError, "losses: expected at least one"),
        ({"lm": 2.0}, {}, {}, TypeError, r"losses\['lm'\]: expected a tensor, got float"),
        ({"lm": torch.tensor(2)}, {}, {}, TypeError, r"losses\['lm'\]: expected a floating dtype"),
        ({"lm": torch.zeros(1)}, {}, {}, ValueError, r"losses\['lm'\]: expected a 0-d tensor, got the shape \[1\]"),
        ({"teacher": torch.zeros((), device="meta")}, {}, {}, ValueError, r"losses\['teacher'\]: .*cpu.*meta"),
        ({"extra": torch.tensor(1.0)}, {}, {}, ValueError, r"weights: .*got none for \['extra'\]"),
        ({}, {"extra": 1.0}, {}, ValueError, r"weights: .*got also \['extra'\]"),
        ({}, {"lm": torch.tensor(1.0)}, {}, TypeError, r"weights\['lm'\]: expected a number, got Tensor"),
        ({}, {"lm": True}, {}, TypeError, r"weights\['lm'\]: expected a number, got bool"),
        ({}, {"lm": math.nan}, {}, ValueError, r"weights\['lm'\]: expected a finite number, got nan"),
        ({}, {}, {"constant": ["tutor"]}, ValueError, r"constant: .*got \['tutor'\]"),
        ({}, {}, {"constant": "lm"}, TypeError, "constant: expected a collection of names"),
    ],
)
def test_bad_arguments_are_named(
    parts: dict[str, Any], weights: dict[str, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    nothing = not parts and not weights and not options
    with pytest.raises(error, match=f"^{message}"):
        total_loss({} if nothing else losses() | parts, {} if nothing else WEIGHTS | weights, **options)
