"""``masked_scatter.deepstack``: features of inner layers of an encoder added to hidden states at their placeholders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from assay.audits.candidates import of_family, of_reference
from assay.audits.components.masked_scatter.batch import Inputs
from assay.audits.components.masked_scatter.placing import by_modality, in_order, operation
from assay.audits.families import scattering
from assay.audits.terms import Candidate, Form, Implementation, Outputs
from assay.reference import masked_scatter

NAME = "masked_scatter.deepstack"
OUTPUT = "hidden"
SITE = "_deepstack_process"
"""The method of transformers' text models that does it, in 4.57 to 5.23."""


def reference(inputs: Inputs) -> Outputs:
    """The specification."""
    return _assay(masked_scatter.add_at_placeholders, inputs)


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {OUTPUT: by_modality(function, inputs)}


def _hf(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {OUTPUT: in_order(function, inputs)}


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

OPERATION = operation(
    NAME,
    "features of inner layers of an encoder added to hidden states at their placeholders (deepstack)",
    output=OUTPUT,
    reference=reference,
    forms=FORMS,
    added=True,
)

CANDIDATES = (
    of_reference(NAME, f"{__name__}:reference", origin="assay.reference.masked_scatter"),
    of_family(NAME, "qwen3_vl", "", factory=f"{__name__}:of_model", scope={}),
)


def for_family(name: str, patch: str) -> Candidate | None:
    """The function with which a family adds the features, under a patch if there is one; None where it has none."""
    if name not in scattering.installed_families() or SITE not in scattering.source(name):
        return None
    return of_family(NAME, name, patch, factory=f"{__name__}:of_model", scope={})


def of_model(target: Mapping[str, Any]) -> Implementation:
    """The method of a family's text model that adds features, as it is: it needs nothing of its model."""
    name, patch = str(target["family"]), str(target.get("patch", ""))
    if patch:
        model, _whole = scattering.patched(name, patch)
        found = next((getattr(part, SITE) for part in model.modules() if hasattr(part, SITE)), None)
        if found is None:
            raise LookupError(f"{name}: the model that the patch leaves has no {SITE}")
        return lambda inputs: _hf(found, inputs)
    method = scattering.method(name, SITE)
    return lambda inputs: _hf(lambda *args: method(None, *args), inputs)
