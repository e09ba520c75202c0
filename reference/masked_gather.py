"""Ragged choices of tokens from a batch, as padded indices with their validity.

Each row of a batch keeps another number of tokens. Cutting them out with a boolean mask flattens the batch and can only
be put back where all counts happen to be equal; so choices are indices [B, M], padded to the longest row, and a mask
[B, M] that says which of them are real. The mask has to go wherever the gathered tokens go: a pad with index 0 would
otherwise be token 0.
"""

import torch
from torch import Tensor

from assay.reference.arguments import accumulation_dtype, floating, of_dtype, shaped, within

__all__ = ["gather_masked", "masked_mean"]


def gather_masked(features: Tensor, indices: Tensor, valid: Tensor) -> Tensor:
    """The chosen tokens [B, M, D] of features [B, T, D]; rows of pads are 0.

    Args:
        features: [B, T, D], any dtype; differentiable where floating. Tokens that nobody chooses get a gradient of 0.
        indices: int64 [B, M], each in 0..T-1 where `valid`. Where not, it is never read, whatever it is.
        valid: bool [B, M].

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device; a valid index outside the row.
    """
    if features.ndim != 3:
        raise ValueError(f"features: expected the shape [B, T, D], got {list(features.shape)}")
    of_dtype("indices", indices, torch.int64)
    if indices.ndim != 2:
        raise ValueError(f"indices: expected the shape [B, M], got {list(indices.shape)}")
    shaped("indices", indices, (len(features), indices.shape[1]), features)
    shaped("valid", of_dtype("valid", valid, torch.bool), indices.shape, features)
    within("indices", indices, valid, features.shape[1], " where valid")
    rows, places = valid.nonzero(as_tuple=True)
    out = features.new_zeros((*indices.shape, features.shape[-1]))
    return out.index_put((rows, places), features[rows, indices[valid]])


def masked_mean(features: Tensor, valid: Tensor) -> Tensor:
    """The mean [B, D] of the valid tokens of features [B, N, D]; 0, with zero gradients, for a row without any.

    Args:
        features: [B, N, D], a floating dtype. Tokens that are not valid are never read and get a gradient of 0. Sums
            are float64 for float64, else float32, and rounded once to the dtype of the features.
        valid: bool [B, N].
    """
    floating("features", features)
    if features.ndim != 3:
        raise ValueError(f"features: expected the shape [B, N, D], got {list(features.shape)}")
    shaped("valid", of_dtype("valid", valid, torch.bool), features.shape[:2], features)
    rows, _ = valid.nonzero(as_tuple=True)
    dtype = accumulation_dtype(features)
    sums = features.new_zeros((len(features), features.shape[-1]), dtype=dtype)
    sums = sums.index_add(0, rows, features[valid].to(dtype))
    return (sums / valid.sum(dim=1, keepdim=True).clamp(min=1)).to(features.dtype)
