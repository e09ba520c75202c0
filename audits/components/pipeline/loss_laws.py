"""The laws of what is trained: the loss that is really computed, and the mode in which it is."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from assay.audits.components.pipeline.model_laws import near
from assay.audits.components.pipeline.views import PIXELS, View, alone, view
from assay.audits.laws.trial import Trial
from assay.audits.patch_runs import from_bytes
from assay.audits.terms import Evidence, Inexpressible


def loss(trial: Trial) -> Iterator[Evidence]:
    """The loss of a batch is the mean over its targets of what the model's scores say; with a count, their sum by it.

    Why: labels, masks and positions are right in vain where the loss is not theirs. A wrong divisor makes short answers
    weigh more, a label that is shifted twice or not at all trains another token, and logits that are rounded before the
    sum drown the difference between likely tokens. Where the model, a ``loss`` of the pipeline or a ``Trainer``
    computes it, it is the cross-entropy, with the ``Trainer``'s label smoothing; another objective is a matter of a
    waiver.

    Example: a ``compute_loss`` that divides by all tokens of the row instead of those that are trained on.
    """
    found = view(trial, run=True)
    got, want = _without_experts(found), _wanted(found)
    evidence = near("loss", got, want.mean().reshape(1), "the loss is not the mean over the targets")
    yield from [evidence] if evidence else []
    yield from _by_count(trial, found, want)
    share = float(found.model("rounded"))
    if share > MOST:
        message = f"the logits are rounded to half precision, in a model of {trial.inputs.dtype}"
        measured, limit = f"{share:.0%} of the logits", "few by chance"
        yield Evidence(where="logits", measured=measured, limit=limit, message=message)


MOST = 0.5
"""Of logits in double precision hardly any is by chance a number of half precision: more than half are rounded."""


def _without_experts(found: View) -> Tensor:
    """The loss without what a mixture of experts adds. Inexpressible where nobody says how much that is."""
    got = found.model("loss")
    if "added" not in found.values:
        return got
    if not bool(torch.isfinite(found.values["added"]).all()):
        raise Inexpressible("the model adds a term to its loss, and nothing says with which weight")
    return got - found.values["added"]


def _wanted(found: View) -> Tensor:
    """The loss [N] of each target. Inexpressible where nothing is trained on."""
    smooth = float(found.facts.get("smoothing", 0.0))
    trained = found.model("trained")
    if not bool(trained.any()):
        raise Inexpressible("nothing of the batch is trained on")
    each = (1 - smooth) * found.model("targets") + smooth * found.model("spread")
    return -each[trained]


def _by_count(trial: Trial, found: View, want: Tensor) -> Iterator[Evidence]:
    """With the count of a step. A ``Trainer`` has handed on its own, or none."""
    if found.facts.get("trained_by"):
        return
    items = 2 * len(want) + 1
    limit = want.sum() / items
    try:
        got = _without_experts(view(trial, run=True, items=items))
    except Inexpressible:
        return
    evidence = near("loss", got, limit.reshape(1), f"with {items} items in the step, the loss is not their share of it")
    yield from [evidence] if evidence else []


def mode(trial: Trial) -> Iterator[Evidence]:
    """In training mode, with dropout at zero, the model gives the scores, loss, positions and gradients of eval mode.

    Why: every other run of the model here is in eval mode, as are evaluations. A forward that asks ``self.training``
    may do right there and something else in training: a mask that is not handed on, or features that are left out.

    Example: a fused path for training alone, which takes no ``position_ids``.
    """
    asked = {"run": True, "gradients": not view(trial).facts.get("trained_by")}  # a Trainer's step trains by itself
    still, moving = view(trial, **asked), view(trial, **asked, training=True)
    if bool(moving.model("drawn")) and not bool(still.model("drawn")):
        raise Inexpressible("the model draws in training mode, also without dropout")
    message = "another in training mode, without dropout, than in eval mode"
    for name in ("scores", "loss"):
        if (name in still.values) != (name in moving.values):
            measured, limit = ("absent", "present") if name in still.values else ("present", "absent")
            yield Evidence(where=name, measured=measured, limit=limit, message=message)
        elif name in still.values:
            evidence = near(name, _told(moving, name), _told(still, name), message)
            yield from [evidence] if evidence else []
    same_terms = ("added" in still.values) == ("added" in moving.values)  # experts may add theirs in training alone
    if same_terms and all("grads" in found.values and found.values["grads"].numel() for found in (still, moving)):
        got, want = (found.model("grads") for found in (moving, still))
        evidence = near("gradients", got[:, 0], want[:, 0], message, reach=want[:, 1].amax())
        yield from [evidence] if evidence else []
    if "positions" in still.values and not _same(still, moving):
        yield Evidence(where="positions", measured="others", limit="those of eval mode", message=message)


def _told(found: View, name: str) -> Tensor:
    """The loss without what experts add, or the scores of what is no padding: what stands there nobody reads."""
    if name == "loss":
        return _without_experts(found)
    values = found.model(name)
    real = found.real[:, :-1] & found.real[:, 1:]
    return values[:, :-1][real]


def _same(one: View, other: View) -> bool:
    here, there = (found.values.get("positions") for found in (one, other))
    if here is None or there is None or here.shape != there.shape:
        return False
    real = one.real.expand(here.shape[-2:]) if here.shape[-2] != 1 else one.real[:1]
    return torch.equal(here[..., real], there[..., real])


def reached(trial: Trial) -> Iterator[Evidence]:
    """The loss has a gradient, and every large part of the model that is called and is to be trained gets some of it.

    Why: what is to be kept as it is has ``requires_grad`` off. A part whose parameters ask for gradients and get none
    is trained in the settings only: the loss falls, by the rest, and the part is at the end what it was at the start.

    Example: features of a tower that are taken without their graph.
    """
    found = view(trial, run=True, gradients=True)
    _wanted(found)
    if "grads" not in found.values:
        raise Inexpressible("the model gives no loss")
    grads = found.model("grads")
    if not bool(grads[:, 1].any()):
        message = "the loss reaches no parameter: nothing is trained"
        yield Evidence(where="gradients", measured="none", limit="some", message=message)
        return
    for name in from_bytes(found.values["unreached"])[:1]:
        message = f"{name} is called, its parameters are to be trained, and none of them has a gradient"
        yield Evidence(where="gradients", measured="none", limit="some", message=message)


def seen(trial: Trial) -> Iterator[Evidence]:
    """What a model makes of a sample is another where its picture is another.

    Why: a model that does not look at pictures learns to guess from the words, which goes a long way. Features that are
    cut off, multiplied by nothing or put where no token reads them fail no check of shapes. A gate that is closed at
    the start is all right: its gradient depends on the picture.

    Example: features that are scattered into a copy of the embeddings.
    """
    found = view(trial)
    asked = {"run": True, "gradients": found.get("labels") is not None}
    for sample in found.samples:
        try:
            dark, light = (alone(trial, sample, painted=colour, **asked) for colour in ((0, 0, 0), (255, 255, 255)))
        except Inexpressible:
            continue
        if dark.ids.tolist() != light.ids.tolist() or torch.equal(*map(_pixels, (dark, light))):
            continue
        if all(_unmoved(name, dark, light) for name in ("scores", "grads")):
            message = f"sample {sample}: scores and gradients are the same for a black picture and for a white one"
            yield Evidence(where="scores", measured="the same", limit="others", message=message, index=(sample,))
        return
    raise Inexpressible("no sample has pictures that could be painted, and pixels that come of them")


def _pixels(found: View) -> Tensor:
    pixels = found.get(PIXELS["image"])
    return torch.zeros(0) if pixels is None else pixels


def _unmoved(name: str, one: View, other: View) -> bool:
    here, there = one.values.get(name), other.values.get(name)
    return here is None or there is None or torch.equal(here, there)


def causal(trial: Trial) -> Iterator[Evidence]:
    """What a model says of the tokens before an answer does not depend on the answer.

    Why: a token that is seen by those before it is copied, not predicted. Under such a mask the loss is near zero in a
    few steps, and what is generated is noise.

    Example: an attention that is given no mask and is not told that it is causal.
    """
    found = view(trial)
    _ = found.labels
    for sample in found.samples:
        number = len(found.record["wants"][found.samples.index(sample)] or ())
        if not number:
            continue
        try:
            here, there = alone(trial, sample, run=True), alone(trial, sample, run=True, reworded=number)
        except Inexpressible:
            continue
        (start, same) = _alike_until(here, there)
        if not same or start < 2:
            continue
        got, want = (one.model("scores")[0, : start - 1] for one in (there, here))
        evidence = near(
            "scores", got, want, f"sample {sample}: what stands before its answer is scored by what follows"
        )
        yield from [evidence] if evidence else []
        return
    raise Inexpressible("no row changes with an answer of its sample's messages, from a place on")


def _alike_until(one: View, other: View) -> tuple[int, bool]:
    """The first place at which two rows differ, and whether there is one at all."""
    pairs = enumerate(zip(one.ids[0].tolist(), other.ids[0].tolist(), strict=False))
    place = next((place for place, (a, b) in pairs if a != b), None)
    return (place or 0), place is not None
