"""What ``masked_scatter.scatter`` and ``masked_scatter.deepstack`` have in common: they differ in what they do there.

Letters: B batch, S tokens, H hidden, N features of a modality.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from assay.audits.components.masked_scatter import batch
from assay.audits.components.masked_scatter.batch import Case, Inputs
from assay.audits.terms import Form, Numeric, Operation, Outputs


def by_modality(function: Callable[..., Any], inputs: Inputs) -> Any:
    """The function of the batch as the references take it: features and placeholder ids by modality."""
    return function(inputs.input_ids, inputs.embeddings, inputs.handed(), inputs.placeholders())


def in_order(function: Callable[[Tensor, Tensor, Tensor], Any], inputs: Inputs) -> Any:
    """The function of rows [B,S,H], one mask [B,S] for all modalities and their features [sum of N,H] in order.

    A batch without placeholders and features stays as it is: callers do not ask.
    """
    if not inputs.flat() and not bool(inputs.masked().any()):
        return inputs.embeddings.clone()
    return function(inputs.embeddings, inputs.masked(), batch.at_once(inputs))


def operation(
    name: str,
    summary: str,
    *,
    output: str,
    reference: Callable[[Inputs], Outputs],
    forms: tuple[Form, ...],
    added: bool,
) -> Operation:
    """The operation whose truth is ``reference``. ``added``: features come on top of the rows, not in their place."""
    reach = partial(batch.reach, output=output, added=added)
    return Operation(
        name=name,
        summary=summary,
        params=Case,
        build=batch.build,
        outputs=(output,),
        expect=Numeric(oracle=reference, eager=reference, reach=reach, draws=batch.draws),
        forms=forms,
        cases=batch.CASES,
        strategy=batch.strategy,
        differentiable=("embeddings", "image", "video", "audio"),
        dtypes=("float32", "bfloat16"),
        further_dtypes=("float16", "float64"),
        supports=batch.supports,
    )
