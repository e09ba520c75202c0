"""What the installed transformers offers for packing, as functions that a candidate can name."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from assay.audits.terms import Inexpressible

Features = list[dict[str, Any]]


def flattening(features: Features) -> dict[str, Any]:
    """``DataCollatorWithFlattening`` as it is made without arguments."""
    return _flattened(features)


def flattening_flash(features: Features) -> dict[str, Any]:
    """The same with the cumulative lengths that flash attention takes."""
    return _flattened(features, return_flash_attn_kwargs=True)


def flattening_seq_idx(features: Features) -> dict[str, Any]:
    """The same with the cumulative lengths and the number of each token's sample, as recurrent layers take it."""
    return _flattened(features, return_flash_attn_kwargs=True, return_seq_idx=True)


def _flattened(features: Features, **options: bool) -> dict[str, Any]:
    from transformers import DataCollatorWithFlattening

    known = inspect.signature(DataCollatorWithFlattening.__init__).parameters
    if lacking := [name for name in options if name not in known]:
        raise Inexpressible(f"the collator of the installed transformers has no {' and no '.join(lacking)}")
    made: dict[str, Any] = DataCollatorWithFlattening(**options)(features)
    return made


def flash_lengths(position_ids: Tensor) -> Any:
    """The cumulative lengths that flash attention is given where a batch has position ids alone."""
    from transformers import modeling_flash_attention_utils as flash

    return flash.prepare_fa_kwargs_from_position_ids(position_ids)


def mask_segments(position_ids: Tensor) -> Tensor | None:
    """The samples that masks are made for; None for one in each row."""
    from transformers import masking_utils

    found: Tensor | None = masking_utils.find_packed_sequence_indices(position_ids)
    return found


def eager_mask(position_ids: Tensor) -> Tensor | None:
    """The mask that eager attention is given where a batch has position ids and no mask."""
    return _mask("eager", position_ids)


def sdpa_mask(position_ids: Tensor) -> Tensor | None:
    """The same for scaled dot product attention."""
    return _mask("sdpa", position_ids)


def _mask(attention: str, position_ids: Tensor) -> Tensor | None:
    from transformers import LlamaConfig, masking_utils

    config = LlamaConfig(num_hidden_layers=1, attn_implementation=attention)
    known = inspect.signature(masking_utils.create_causal_mask).parameters
    named = {"inputs_embeds" if "inputs_embeds" in known else "input_embeds": torch.zeros(*position_ids.shape, 1)}
    named |= {"cache_position": torch.arange(position_ids.shape[1])} if "cache_position" in known else {}
    made: Tensor | None = masking_utils.create_causal_mask(
        config=config, attention_mask=None, past_key_values=None, position_ids=position_ids, **named
    )
    return made
