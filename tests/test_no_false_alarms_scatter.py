"""Right ways to put features to their placeholders, as trainers and servers write them, pass every law."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from assay.audits import registry
from assay.audits.components.masked_scatter import deepstack, scatter
from assay.audits.components.masked_scatter.batch import Inputs
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Report, Verdict

EXAMPLES = 8


def _count(tokens: int, features: int) -> None:
    if tokens != features:
        message = f"tokens: {tokens}, features: {features}"
        raise ValueError(message)


def by_masked_scatter(embeddings: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    """As transformers has it."""
    _count(int(mask.sum()), len(features))
    return embeddings.masked_scatter(mask[..., None].expand_as(embeddings), features.to(embeddings.dtype))


def by_expanded_mask(embeddings: Tensor, expanded_mask: Tensor, features: Tensor) -> Tensor:
    """With a mask that was expanded before, the counts in numbers of numbers and in tokens."""
    _count(int(expanded_mask[..., 0].sum()), features.numel() // features.shape[-1])
    return embeddings.masked_scatter(expanded_mask, features.to(embeddings.dtype).contiguous())


def by_assignment(inputs_embeds: Tensor, multimodal_embeddings: Tensor, is_multimodal: Tensor) -> Tensor:
    """A clone, and an assignment by the mask, as vLLM has it but for the clone."""
    _count(int(is_multimodal.sum()), len(multimodal_embeddings))
    out = inputs_embeds.clone()
    out[is_multimodal] = multimodal_embeddings.to(out.dtype)
    return out


def by_running_count(input_ids: Tensor, inputs_embeds: Tensor, features: Tensor, token_id: int) -> Tensor:
    """Each place looks up its feature by the number of placeholders before it."""
    mask = input_ids == token_id
    _count(int(mask.sum()), len(features))
    if not len(features):
        return inputs_embeds
    index = (mask.flatten().cumsum(0) - 1).clamp(min=0).view(mask.shape)
    return torch.where(mask[..., None], features.to(inputs_embeds.dtype)[index], inputs_embeds)


def by_mask_of_transformers(
    input_ids: Tensor, inputs_embeds: Tensor, image_features: Tensor, image_token_id: int
) -> Tensor:  # fmt: skip
    """``get_placeholder_mask`` as a function; it is not expanded over the hidden dimension in 5.23."""
    mask = input_ids == image_token_id
    if int(mask.sum()) * inputs_embeds.shape[-1] != image_features.numel():
        message = f"do not match, tokens: {int(mask.sum())}, features: {image_features.shape[0]}"
        raise ValueError(message)
    return mask[..., None]


def by_flat_index(
    input_ids: Tensor, embeddings: Tensor, features: Mapping[str, Any], placeholders: Mapping[str, int]
) -> Tensor:  # fmt: skip
    """One index over the flattened batch; media one by one, each within its sample."""
    out = embeddings.flatten(0, 1)
    length = input_ids.shape[1]
    for name, token in placeholders.items():
        rows = features.get(name, ())
        media = [rows] if isinstance(rows, Tensor) and rows.ndim == 2 else list(rows)
        index = (input_ids.flatten() == token).nonzero()[:, 0]
        _count(len(index), sum(map(len, media)))
        for own, part in zip(index.split([len(part) for part in media]) if media else (), media, strict=True):
            if not (isinstance(rows, Tensor) and rows.ndim == 2) and len(own) and own[0] // length != own[-1] // length:
                message = "an image lies in two samples"
                raise ValueError(message)
            out = out.index_copy(0, own, part.to(out.dtype))
    return out.view_as(embeddings)


def by_pieces(embeddings: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    """Sample by sample, text and features concatenated, row by row."""
    _count(int(mask.sum()), len(features))
    left, rows = iter(features.to(embeddings.dtype)), []
    for own, places in zip(embeddings, mask.tolist(), strict=True):
        picked = [next(left) if place else row for row, place in zip(own, places, strict=True)]
        rows.append(torch.stack(picked) if picked else own)
    return torch.stack(rows) if rows else embeddings


def by_a_table(embeddings: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    """Text and features are one table, and each place looks up its row."""
    _count(int(mask.sum()), len(features))
    places, hidden = mask.numel(), embeddings.shape[-1]
    table = torch.cat([embeddings.reshape(places, hidden), features.to(embeddings.dtype)])
    index = torch.arange(places).masked_scatter(mask.flatten(), places + torch.arange(len(features)))
    return table.index_select(0, index).view_as(embeddings)


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, mask: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return embeddings.index_put(mask.nonzero(as_tuple=True), features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        (mask,) = ctx.saved_tensors
        return grad.masked_fill(mask[..., None], 0), None, grad[mask]


def by_a_function_of_its_own(embeddings: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    """With a backward that is written out."""
    _count(int(mask.sum()), len(features))
    return _Put.apply(embeddings, mask, features.to(embeddings.dtype))


def by_clone_and_index(hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
    """``_deepstack_process`` as a function."""
    hidden_states = hidden_states.clone()
    local = hidden_states[visual_pos_masks, :] + visual_embeds.to(hidden_states.dtype)
    _count(int(visual_pos_masks.sum()), len(visual_embeds))
    hidden_states[visual_pos_masks, :] = local
    return hidden_states


def by_zeros_elsewhere(hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
    """Features scattered into zeros, and a sum over all rows."""
    _count(int(visual_pos_masks.sum()), len(visual_embeds))
    zeros = torch.zeros_like(hidden_states)
    mask = visual_pos_masks[..., None].expand_as(hidden_states)
    return hidden_states + zeros.masked_scatter(mask, visual_embeds.to(hidden_states.dtype).contiguous())


RIGHT: tuple[tuple[str, str, Callable[..., Tensor]], ...] = (
    (scatter.NAME, "mask", by_masked_scatter),
    (scatter.NAME, "mask", by_pieces),
    (scatter.NAME, "mask", by_a_table),
    (scatter.NAME, "mask", by_a_function_of_its_own),
    (scatter.NAME, "expanded", by_expanded_mask),
    (scatter.NAME, "vllm", by_assignment),
    (scatter.NAME, "token-id", by_running_count),
    (scatter.NAME, "hf", by_mask_of_transformers),
    (scatter.NAME, "assay", by_flat_index),
    (deepstack.NAME, "hf", by_clone_and_index),
    (deepstack.NAME, "hf", by_zeros_elsewhere),
)


def _audited(operation: str, form: str, function: Callable[..., Tensor]) -> Report:
    target = {"kind": "import", "ref": f"{__name__}:{function.__name__}", "operation": operation}
    candidate = Candidate(operation=operation, name=function.__name__, form=form, target=target, trusted=True)
    return audit(registry.operation(operation), candidate, Options(examples=EXAMPLES))


@pytest.mark.parametrize(("operation", "form", "function"), RIGHT, ids=[item[2].__name__ for item in RIGHT])
def test_a_harmless_rewrite_passes(operation: str, form: str, function: Callable[..., Tensor]) -> None:
    report = _audited(operation, form, function)
    found = [(item.rule, item.case, item.dtype, item.where, item.measured, item.message) for item in report.findings]
    assert found == []
    assert report.verdict == Verdict.PASS


def cut_off(embeddings: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    """The fix of the seed case: at least as many as are needed, and the rest dropped."""
    need = int(mask.sum())
    if len(features) < need:
        message = f"{need} placeholders, {len(features)} features"
        raise ValueError(message)
    return embeddings.masked_scatter(mask[..., None].expand_as(embeddings), features[:need].to(embeddings.dtype))


def test_the_fix_of_the_seed_case_fails_for_its_surplus() -> None:
    report = _audited(scatter.NAME, "mask", cut_off)
    assert {item.rule for item in report.findings} == {"masked_scatter.scatter.surplus"}
    assert any("image placeholders: 10, features: 11" in item.message for item in report.findings)


@pytest.mark.parametrize("operation", [scatter.NAME, deepstack.NAME])
def test_forms_agree(operation: str) -> None:
    """What all forms hand over is the same batch."""
    found = registry.operation(operation)
    for case in found.cases.values():
        inputs: Inputs = found.build(case, torch.float32, torch.device("cpu"))
        assert not inputs.spread()
        assert len(inputs.joined()) == int(inputs.masked().sum())
