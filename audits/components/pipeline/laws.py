"""The laws of a pipeline."""

from __future__ import annotations

from functools import partial

from assay.audits.components.pipeline import (
    batch_laws,
    label_laws,
    loss_laws,
    mask_laws,
    model_laws,
    picture_laws,
    role_laws,
    talk_laws,
)
from assay.audits.components.pipeline.operations import NAME
from assay.audits.terms import Law

_law = partial(Law.of, (NAME,))

OF_BATCHES = (
    _law(batch_laws.accepted),
    _law(batch_laws.placement),
    _law(batch_laws.features),
    _law(batch_laws.media),
    _law(batch_laws.orientation),
    _law(picture_laws.pictures),
    _law(picture_laws.patches),
    _law(picture_laws.pixels),
    _law(picture_laws.upright),
    _law(batch_laws.types),
    _law(mask_laws.hidden),
    _law(batch_laws.boundaries),
    _law(talk_laws.messages),
    _law(talk_laws.extra),
    _law(role_laws.roles),
    _law(role_laws.markup),
    _law(role_laws.foretold),
    _law(label_laws.kept),
    _law(label_laws.answers),
    _law(label_laws.alone),
    _law(model_laws.positions),
)
"""Laws that run no decoder: they are asked again while a batch is drawn."""

LAWS = (
    *OF_BATCHES,
    _law(loss_laws.loss),
    _law(loss_laws.mode),
    _law(loss_laws.reached),
    _law(loss_laws.seen),
    _law(loss_laws.causal),
    _law(model_laws.isolated),
    _law(model_laws.side),
    _law(model_laws.order),
    _law(model_laws.micro),
    _law(batch_laws.repeat),
)
