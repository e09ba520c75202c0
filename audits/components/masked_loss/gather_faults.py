"""Wrong ways of choosing ragged tokens."""

from __future__ import annotations

import torch

from assay.audits.components.masked_loss.gather import NAME, Inputs, reference
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs


def fetched(inputs: Inputs) -> torch.Tensor:
    """What all indices point to, the padded ones too."""
    wide = inputs.indices[..., None].expand(*inputs.indices.shape, inputs.features.shape[-1])
    return inputs.features.gather(1, wide)


@fault(NAME, "pads", "parity")
def pads_fetch_token_zero(inputs: Inputs) -> Outputs:
    """Nothing says which indices are pads.

    Effect: the first patch is pooled and trained on once for every pad.
    """
    return {"gathered": fetched(inputs)}


@fault(NAME, "ragged", "parity")
def flat_list_cut_into_rows(inputs: Inputs) -> Outputs:
    """The batch is flattened by boolean indexing, and the list cut into equal rows.

    Effect: right for equal counts; otherwise tokens move to the neighbour sample.
    """
    flat = fetched(inputs)[inputs.valid]
    rows = torch.zeros_like(fetched(inputs)).flatten(0, 1)
    rows = torch.cat([flat, rows[len(flat) :]])
    return {"gathered": rows.view_as(fetched(inputs))}


@fault(NAME, "pads", "parity")
def pads_repeat_the_last(inputs: Inputs) -> Outputs:
    """Pads repeat the last valid index of their sample.

    Effect: the last token of short samples weighs more.
    """
    last = (inputs.valid.sum(1, keepdim=True) - 1).clamp(min=0)
    place = torch.minimum(torch.arange(inputs.indices.shape[1], device=last.device), last)
    repeated = inputs.indices.gather(1, place) if inputs.indices.numel() else inputs.indices
    wide = repeated[..., None].expand(*repeated.shape, inputs.features.shape[-1])
    return {"gathered": inputs.features.gather(1, wide)}


@fault(NAME, "pads", "gradients")
def zero_by_assignment_to_values(inputs: Inputs) -> Outputs:
    """The pads' values are subtracted again, their gradient is not.

    Effect: token 0 gets a gradient through every pad, with a forward that is right.
    """
    raw, right = fetched(inputs), reference(inputs)["gathered"]
    return {"gathered": raw + (right - raw).detach()}


@fault(NAME, "parity", "ragged")
def truncated_to_the_shortest(inputs: Inputs) -> Outputs:
    """All samples are cut to the smallest count.

    Effect: chosen tokens are dropped in silence, the more the more ragged a batch is.
    """
    least = inputs.valid.sum(1).min() if len(inputs.valid) else inputs.valid.sum()
    kept = torch.arange(inputs.indices.shape[1], device=inputs.indices.device) < least
    return {"gathered": torch.where(kept[None, :, None], reference(inputs)["gathered"], 0.0)}


FAULTS = gathered(globals())
