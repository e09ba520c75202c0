"""``masked_scatter.deepstack``: features of inner layers of an encoder added to hidden states at their placeholders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from assay.audits.candidates import of_family, of_reference
from assay.audits.components.masked_scatter.batch import CASES, Case, Inputs, at_once, build, draws, strategy, supports
from assay.audits.components.masked_scatter.batch import reach as _reach
from assay.audits.families import scattering
from assay.audits.terms import Candidate, Form, Implementation, Numeric, Operation, Outputs
from assay.reference import masked_scatter

NAME = "masked_scatter.deepstack"
OUTPUT = "hidden"
SITE = "_deepstack_process"
"""The method of transformers' text models that does it, in 4.57 to 5.23."""


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return _assay(masked_scatter.add_at_placeholders, inputs)


def reach(inputs: Inputs, upstream: Outputs | None) -> Outputs:
    """Each row is relative to the sum of what is added."""
    return _reach(inputs, OUTPUT, upstream, added=True)


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {OUTPUT: function(inputs.input_ids, inputs.embeddings, inputs.handed(), inputs.placeholders())}


def _hf(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    if not inputs.flat() and not bool(inputs.masked().any()):
        return {OUTPUT: inputs.embeddings.clone()}
    return {OUTPUT: function(inputs.embeddings, inputs.masked(), at_once(inputs))}


FORMS = (
    Form(
        name="assay",
        summary="function(input_ids, hidden, features, placeholders): features and ids by modality; [B,S,H]",
        parameters=("input_ids", "hidden", "features", "placeholders"),
        call=_assay,
    ),
    Form(
        name="hf",
        summary="function(hidden_states, visual_pos_masks [B,S], visual_embeds [N,H]), as _deepstack_process of "
        "transformers: all modalities at once, in order",
        parameters=("hidden_states", "visual_pos_masks", "visual_embeds"),
        call=_hf,
    ),
)

OPERATION = Operation(
    name=NAME,
    summary="features of inner layers of an encoder added to hidden states at their placeholders (deepstack)",
    params=Case,
    build=build,
    outputs=(OUTPUT,),
    expect=Numeric(oracle=reference, eager=reference, reach=reach, draws=draws),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    differentiable=("embeddings", "image", "video", "audio"),
    dtypes=("float32", "bfloat16"),
    further_dtypes=("float16", "float64"),
    supports=supports,
)

CANDIDATES = (
    of_reference(NAME, f"{__name__}:reference", origin="assay.reference.masked_scatter"),
    of_family(NAME, "qwen3_vl", "", factory=f"{__name__}:of_model", scope={}),
)


def for_family(name: str, patch: str) -> Candidate | None:
    """The function with which a family adds the features; None where it has none of its own, and under a patch."""
    if patch or name not in scattering.installed_families() or SITE not in scattering.source(name):
        return None
    return of_family(NAME, name, "", factory=f"{__name__}:of_model", scope={})


def of_model(target: Mapping[str, Any]) -> Implementation:
    """The method of a family's text model that adds features, as it is: it needs nothing of its model."""
    method = scattering.method(str(target["family"]), SITE)
    return lambda inputs: _hf(lambda *args: method(None, *args), inputs)
