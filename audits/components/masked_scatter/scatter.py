"""``masked_scatter.scatter``: text embeddings with the features of media at their placeholders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from assay.audits.candidates import of_reference
from assay.audits.components.masked_scatter.batch import Inputs, one_by_one
from assay.audits.components.masked_scatter.placing import by_modality, in_order, operation
from assay.audits.terms import Form, Outputs
from assay.reference import masked_scatter

NAME = "masked_scatter.scatter"
OUTPUT = "embeddings"


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return _assay(masked_scatter.scatter_features, inputs)


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {OUTPUT: by_modality(function, inputs)}


def _mask(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {OUTPUT: one_by_one(inputs, lambda x, name, rows: function(x, inputs.mask(name), rows))}


def _expanded(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    def place(x: Tensor, name: str, rows: Tensor) -> Tensor:
        found: Tensor = function(x, inputs.mask(name)[..., None].expand_as(x), rows)
        return found

    return {OUTPUT: one_by_one(inputs, place)}


def _token_id(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    ids = inputs.placeholders()
    return {OUTPUT: one_by_one(inputs, lambda x, name, rows: function(inputs.input_ids, x, rows, ids[name]))}


def _placeholder_mask(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    """As the models of transformers go on: with one dimension at the end, or with the embeddings' own shape."""

    def place(x: Tensor, name: str, rows: Tensor) -> Tensor:
        found = function(inputs.input_ids, x, rows, inputs.placeholders()[name])
        return x.masked_scatter(found if found.ndim == x.ndim else found[..., None], rows)

    return {OUTPUT: one_by_one(inputs, place)}


def _multimodal(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {OUTPUT: in_order(lambda rows, mask, features: function(rows, features, mask), inputs)}


FORMS = (
    Form(
        name="assay",
        summary="function(input_ids, embeddings, features, placeholders): features and ids by modality; [B,S,H]",
        parameters=("input_ids", "embeddings", "features", "placeholders"),
        call=_assay,
    ),
    Form(
        name="mask",
        summary="function(embeddings, mask [B,S], features [N,H]): one modality after the other; [B,S,H]",
        parameters=("embeddings", "mask", "features"),
        call=_mask,
    ),
    Form(
        name="expanded",
        summary="function(embeddings, mask [B,S,H], features [N,H]): the mask expanded over the hidden dimension",
        parameters=("embeddings", "expanded_mask", "features"),
        call=_expanded,
    ),
    Form(
        name="token-id",
        summary="function(input_ids, inputs_embeds, features [N,H], token_id): one modality after the other; [B,S,H]",
        parameters=("input_ids", "inputs_embeds", "features", "token_id"),
        call=_token_id,
    ),
    Form(
        name="hf",
        summary="function(input_ids, inputs_embeds, image_features [N,H], image_token_id): the mask, as transformers' "
        "get_placeholder_mask returns it; masked_scatter comes after",
        parameters=("input_ids", "inputs_embeds", "image_features", "image_token_id"),
        call=_placeholder_mask,
    ),
    Form(
        name="vllm",
        summary="function(inputs_embeds, multimodal_embeddings, is_multimodal [B,S]): all modalities at once, in order",
        parameters=("inputs_embeds", "multimodal_embeddings", "is_multimodal"),
        call=_multimodal,
    ),
)

OPERATION = operation(
    NAME,
    "features of images, videos and sounds put into text embeddings at their placeholders",
    output=OUTPUT,
    reference=reference,
    forms=FORMS,
    added=False,
)

CANDIDATES = (of_reference(NAME, f"{__name__}:reference", origin="assay.reference.masked_scatter"),)
