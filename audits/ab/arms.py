"""The two sides of a comparison: patches by name, and those that are ready to be named.

A patch is a function ``package.module:function``. How it is used is read from what it requires:

* nothing: it is called once, before the model is built, and changes code;
* an argument called ``batch``: it is given every batch of training, a dictionary that it may change, and returns the
  one to be used (see :func:`assay.audits.ab.packs.pack` for what is in it);
* one argument of another name: it is given the model, and may return another module.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch

from assay.audits.ab.model import build, family_of
from assay.audits.ab.packs import Batch
from assay.audits.patch_users import needs_model, patched_model
from assay.audits.resolve import imported

TRUE = "assay.audits.ab.arms:true_positions"
COPIED = "assay.audits.ab.arms:copied_positions"


def true_positions(batch: Batch) -> Batch:
    """Time, height and width of every token, from each sample's own grid: the batch as it is."""
    return batch


def copied_positions(batch: Batch) -> Batch:
    """Each sample's tokens are counted 0, 1, 2, ..., and the count is copied to all three axes."""
    index = batch["sample_index"]
    place = torch.arange(index.shape[-1]).expand_as(index)
    first = torch.ones_like(index, dtype=torch.bool)
    first[:, 1:] = index[:, 1:] != index[:, :-1]
    count = place - torch.where(first, place, 0).cummax(-1).values
    return {**batch, "position_ids": torch.where(index < 0, 0, count).expand(3, -1, -1).contiguous()}


def neighbours_seen(batch: Batch) -> Batch:
    """The attention boundaries are lost: a token sees all tokens before it in its row, also those of other samples."""
    mask = batch["attention_mask"]
    sees = torch.ones(mask.shape[-2:], dtype=torch.bool).tril()
    return {**batch, "attention_mask": torch.zeros_like(mask).masked_fill(~sees, mask.min())}


def on_batch(ref: str) -> Callable[[Batch], Batch] | None:
    """The patch, if it is one of batches; None for patches of code or of models. TypeError where it is neither."""
    function: Any = imported(ref)
    if not callable(function):
        message = f"patch {ref}: expected a function, got {type(function).__name__}"
        raise TypeError(message)
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [one for one in inspect.signature(function).parameters.values() if one.kind not in several]
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    if required == ["batch"]:
        patch: Callable[[Batch], Batch] = function
        return patch
    needs_model(ref)
    return None


def about(ref: str) -> str:
    """The first line of the patch's docstring, its name where it has none."""
    text = inspect.getdoc(imported(ref)) or ""
    return text.partition("\n")[0] or ref.partition(":")[2]


def model_under(ref: str, family_name: str, seed: int) -> Any:
    """A tiny model in training mode with weights drawn from ``seed``, under the patch if that is not one of batches."""
    family = family_of(family_name)
    if on_batch(ref) is not None:
        return build(family, seed).train()
    # What patched_model builds is always numbered 0; the seed of the weights is ours to say.
    seeded = dataclasses.replace(family, build=lambda _seed: build(family, seed))
    return patched_model(ref, seeded).train()


def applied(patch: Callable[[Batch], Batch] | None, batch: Batch, ref: str) -> Batch:
    """A copy of the batch under a patch. TypeError when the patch returns something else."""
    if patch is None:
        return batch
    found: Any = patch({name: value.clone() for name, value in batch.items()})
    if not isinstance(found, dict):
        message = f"patch {ref}: expected the batch back, a dictionary, got {type(found).__name__}"
        raise TypeError(message)
    return found
