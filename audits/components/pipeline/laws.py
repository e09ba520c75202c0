"""The laws of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from assay.audits.components.pipeline import batch_laws, label_laws, mask_laws, model_laws, picture_laws, talk_laws
from assay.audits.components.pipeline.operations import NAME
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law


def _law(name: str, check: Callable[[Trial], Iterator[Evidence]]) -> Law:
    return Law(name=name, operations=(NAME,), check=check, doc=check.__doc__ or "")


LAWS = (
    _law("accepted", batch_laws.accepted),
    _law("placement", batch_laws.placement),
    _law("features", batch_laws.features),
    _law("media", batch_laws.media),
    _law("orientation", batch_laws.orientation),
    _law("pictures", picture_laws.pictures),
    _law("types", batch_laws.types),
    _law("hidden", mask_laws.hidden),
    _law("boundaries", batch_laws.boundaries),
    _law("messages", talk_laws.messages),
    _law("kept", label_laws.kept),
    _law("answers", label_laws.answers),
    _law("alone", label_laws.alone),
    _law("positions", model_laws.used),
    _law("isolated", model_laws.isolated),
    _law("side", model_laws.side),
    _law("order", model_laws.order),
    _law("micro", model_laws.micro),
    _law("repeat", batch_laws.repeat),
)
