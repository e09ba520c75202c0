"""The laws of the ways in which a family's forward is run: in training, on embeddings, in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from assay.audits.components.masked_scatter.model import NAME
from assay.audits.components.masked_scatter.model_laws import attempted, pictured, placed, reached, worded
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Inexpressible, Law, Outputs


def training(trial: Trial) -> Iterator[Evidence]:
    """In training mode, without dropout, the same reaches the text model, and the same gradients come back.

    Why: what is right in a test, where models are put into evaluation mode, is not what is trained. A branch on
    ``self.training`` runs nowhere else.

    Example: features that are detached in training, for the sake of a frozen tower, with the projector behind it.
    """
    outcome = attempted(trial, training=True)
    if outcome.raised:
        yield Evidence(
            where="training", measured=outcome.raised.kind, limit="returns",
            message=f"what runs in evaluation mode raises in training mode: {outcome.raised.message[:120]}",
        )  # fmt: skip
        return
    yield from _alike(trial.outcome.values, outcome.values, "differs in training mode")


def _alike(before: Outputs, after: Outputs, message: str) -> Iterator[Evidence]:
    for name in (name for name in before if name in after and name.partition(":")[0] in ("embeddings", "grad")):
        if before[name].shape == after[name].shape:
            yield from exactly(name, after[name], before[name], message)


def embedded(trial: Trial) -> Iterator[Evidence]:
    """Given the embeddings of the ids in place of the ids, the same reaches the text model, with the same gradients.

    Why: prompt tuning, adapters and trainers that embed by themselves take this way, where placeholders are looked for
    among embeddings. What one way scales, replaces or checks and the other does not is another model.

    Example: a factor on embeddings that is only multiplied where ids were given.
    """
    outcome = attempted(trial, embedded=True)
    if outcome.raised:
        raise Inexpressible(f"takes no embeddings in the place of ids: {outcome.raised.message[:80]}")
    yield from _alike(trial.outcome.values, outcome.values, "differs where embeddings are given for the ids")


def narrow(trial: Trial) -> Iterator[Evidence]:
    """In bfloat16 features are where they belong, bit for bit, with words and gradients as they are.

    Why: models are tested in float32 and trained in bfloat16. Counts and indices that pass through the dtype of the
    embeddings are rounded from 257 on, and a factor that is 1 in one dtype need not be so in the other.

    Example: features that are normalised again where the tower is not in float32.
    """
    if trial.inputs.dtype != "float32":
        raise Inexpressible("is asked in another dtype already")
    out = trial.varied(dtype="bfloat16")
    for check in (placed, worded, reached):
        yield from check(out)


def rewrites(trial: Trial) -> Iterator[Evidence]:
    """A forward leaves the embedding table as it is.

    Why: the table is a parameter. What is written into it, features put to a placeholder's row above all, is saved with
    the model, and is what the next batch begins with.

    Example: features that are written into the rows that the embedding layer's weight gives, not into a copy.
    """
    if count := int(trial.outcome.values["rewritten"]):
        yield Evidence(
            where="table", measured=float(count), limit=0.0,
            message="so many rows of the embedding table are others after the forward",
        )  # fmt: skip


_law = partial(Law.of, (NAME,))

LAWS = (_law(training, pictured), _law(embedded, pictured), _law(narrow, pictured), _law(rewrites))
