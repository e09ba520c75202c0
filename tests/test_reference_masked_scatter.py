"""Features at their placeholders: by hand, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.reference.masked_scatter import Features, add_at_placeholders, placeholder_mask, scatter_features

IDS = torch.tensor([[7, 90, 90, 8, 91], [90, 7, 91, 91, 0]])
PLACEHOLDERS = {"image": 90, "video": 91}


def embeddings(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.arange(20, dtype=torch.float64).view(2, 5, 2).to(dtype).requires_grad_()


def features() -> dict[str, Features]:
    return {"image": torch.tensor([[100.0, 101], [102, 103], [104, 105]]).double().requires_grad_(),
            "video": [torch.full((1, 2), -1.0).double(), torch.tensor([[-2.0, -3], [-4, -5]]).double()]}  # fmt: skip


def test_by_hand() -> None:
    x, given = embeddings(), features()
    out = scatter_features(IDS, x, given, PLACEHOLDERS)
    assert out.tolist() == [
        [[0, 1], [100, 101], [102, 103], [6, 7], [-1, -1]],
        [[104, 105], [12, 13], [-2, -3], [-4, -5], [18, 19]],
    ]
    image = given["image"]
    assert isinstance(image, Tensor)
    grads = torch.autograd.grad(out, [x, image], torch.arange(20).view(2, 5, 2).double() + 1)
    assert grads[0].sum(-1).tolist() == [[3, 0, 0, 15, 0], [0, 27, 0, 0, 39]]
    assert grads[1].tolist() == [[3, 4], [5, 6], [11, 12]]


def test_added_by_hand() -> None:
    x = embeddings()
    out = add_at_placeholders(IDS, x, features(), PLACEHOLDERS)
    assert out[0].tolist() == [[0, 1], [102, 104], [106, 108], [6, 7], [7, 8]]
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert (grad == 1).all()


def test_a_mask_is_of_ids() -> None:
    assert placeholder_mask(IDS, 90).tolist() == [[False, True, True, False, False], [True] + [False] * 4]
    assert not placeholder_mask(IDS, -200).any()
    assert placeholder_mask(torch.zeros(0, 3, dtype=torch.int64), 1).shape == (0, 3)


def test_what_stands_at_placeholders_is_not_read() -> None:
    x = embeddings().detach()
    x[IDS >= 90] = math.nan
    out = scatter_features(IDS, x, features(), PLACEHOLDERS)
    assert out.isfinite().all()


def test_layouts_agree() -> None:
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    ids, x = torch.tensor([[9, 9, 1], [2, 9, 9]]), torch.zeros(2, 3, 3)
    flat, stacked, media = (
        scatter_features(ids, x, {"image": given}, {"image": 9}) for given in (rows, rows.view(2, 2, 3), rows.split(2))
    )
    assert torch.equal(flat, stacked)
    assert torch.equal(flat, media)


def test_nothing_to_put_is_a_copy() -> None:
    ids, x = torch.tensor([[1, 2]]), torch.ones(1, 2, 3)
    for given in ({}, {"image": None}, {"image": []}, {"image": torch.zeros(0, 3)}, {"image": torch.zeros(0, 4, 3)}):
        out = scatter_features(ids, x, given, {"image": 9})
        assert torch.equal(out, x)
        assert out.data_ptr() != x.data_ptr()
    none = scatter_features(ids[:0], x[:0], {}, {"image": 9})
    assert none.shape == (0, 2, 3)


def test_a_dtype_is_cast_only_if_asked() -> None:
    ids, x = torch.tensor([[9]]), torch.zeros(1, 1, 2, dtype=torch.bfloat16)
    given = {"image": torch.tensor([[1.0, 1 + 2**-10]])}
    with pytest.raises(TypeError, match=r"^features\['image'\]: expected torch.bfloat16 like the embeddings, or cast"):
        scatter_features(ids, x, given, {"image": 9})
    out = scatter_features(ids, x, given, {"image": 9}, cast=True)
    assert out.dtype == torch.bfloat16
    assert out.tolist() == [[[1.0, 1.0]]]


def test_gradients() -> None:
    ids = torch.tensor([[9, 1, 9], [1, 9, 1]])
    x = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    rows = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    for function in (scatter_features, add_at_placeholders):
        assert torch.autograd.gradcheck(lambda x, r, f=function: f(ids, x, {"image": r}, {"image": 9}), (x, rows))


IMAGE = features()["image"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": {}}, ValueError, r"features\['image'\]: expected 3, one for each placeholder, got 0"),
        ({"features": features() | {"image": torch.zeros(4, 2).double()}}, ValueError, r"features\['image'\].* got 4"),
        ({"features": features() | {"video": torch.zeros(2, 2).double()}}, ValueError, r"features\['video'\].* 3, .*2"),
        (
            {"features": features() | {"video": [torch.zeros(2, 2).double(), torch.zeros(1, 2).double()]}},
            ValueError, r"features\['video'\]\[0\]: expected its 2 placeholders in one sample, .* samples 0 to 1",
        ),
        ({"features": features() | {"sound": None}}, ValueError, r"features: .* got 'sound', without an id"),
        ({"features": {"image": torch.zeros(3, 3).double()}}, ValueError, r"features\['image'\]: expected the shape"),
        ({"features": {"image": torch.zeros(6).double()}}, ValueError, r"features\['image'\]: .*\[N, H\] or \[K, n, H"),
        ({"features": {"image": [torch.zeros(2).double()]}}, ValueError, r"features\['image'\]\[0\]: expected the sha"),
        ({"features": {"image": torch.zeros(3, 2).long()}}, TypeError, r"features\['image'\]: expected a floating"),
        (
            {"features": {"image": torch.zeros(3, 2, dtype=torch.float64, device="meta")}},
            ValueError, r"features\['image'\]: expected to be on cpu like the others, got meta",
        ),
        ({"placeholders": {"image": 90, "video": 90}}, ValueError, "placeholders: expected an id of its own .* got 90"),
        ({"placeholders": {"image": 90.0, "video": 91}}, TypeError, "placeholder: expected an int, got float"),
        ({"input_ids": IDS.int()}, TypeError, "input_ids: expected torch.int64"),
        ({"input_ids": IDS[0]}, ValueError, r"input_ids: expected the shape \[B, S\]"),
        ({"input_ids": IDS[:, :4]}, ValueError, r"input_ids: expected the shape \[2, 5\], got \[2, 4\]"),
        ({"embeddings": torch.zeros(2, 5)}, ValueError, r"embeddings: expected the shape \[B, S, H\]"),
        ({"embeddings": torch.zeros(2, 5, 2).long()}, TypeError, "embeddings: expected a floating dtype"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    usual = {"input_ids": IDS, "embeddings": embeddings(), "features": features(), "placeholders": PLACEHOLDERS}
    with pytest.raises(error, match=f"^{message}"):
        scatter_features(**(usual | arguments))
