"""The guard's laws of a step: its loss and its count, where gradients went, and what the optimiser did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from assay.audits.guard_terms import Live
from assay.audits.terms import Evidence, Inexpressible
from assay.reference.mrope_rows import MODALITIES

VISUAL = ("vision", "visual", "image", "projector", "connector", "merger")
MEDIA: Mapping[str, tuple[str, ...]] = {"image": VISUAL, "video": VISUAL, "audio": ("audio", "speech")}
"""What the names of parts have in them that make features of a kind."""
WHOLE = ""
"""The name of the model among its parts."""


def loss(live: Live) -> Iterator[Evidence]:
    """The loss of each micro-batch is a finite number, and so is every gradient.

    Why: one step with a loss that is not a number leaves no parameter that is one. A trainer may replace such a loss by
    the average of those before it where it is logged, and training goes on in silence, on nothing.

    Example: a batch without any label, whose mean is taken over no target; a logarithm of zero in an added term.
    """
    losses = live.tensors["step.loss"]
    for place in torch.nonzero(~torch.isfinite(losses)).flatten().tolist()[:1]:
        message = f"the loss of micro-batch {place} of the step is no finite number{_without(live, place)}"
        yield Evidence(
            where="loss", measured=str(float(losses[place])), limit="finite", message=message, index=(place,)
        )
        return
    broken = [part for part in live.record["parts"] if not part["finite"]]
    if broken and not live.record["scaled"]:
        name = broken[-1]["name"] or "the model"
        message = f"a gradient of {name} is no finite number, and the loss is"
        yield Evidence(where="gradients", measured="not finite", limit="finite", message=message)
    elif not len(losses) and not any(part["top"] for part in live.record["parts"]):
        raise Inexpressible("no loss was seen: hand it over by guard.saw(batch, loss)")


def _without(live: Live, place: int) -> str:
    counts = live.tensors["step.counts"]
    return ": no label of it counts" if place < len(counts) and int(counts[place, 0]) == 0 else ""


def items(live: Live) -> Iterator[Evidence]:
    """``num_items_in_batch`` is the number of tokens that are trained on, over all micro-batches of the step.

    Why: the loss of each micro-batch is divided by it. Where it counts another thing (padding, the prompt, one
    micro-batch of eight) the learning rate is another one, and differs from step to step with the lengths.

    Example: a trainer that counts the labels of the first micro-batch alone.
    """
    told, counts = live.tensors.get("step.items"), live.tensors["step.counts"]
    if told is None or not len(told):
        raise Inexpressible("the forward is given no num_items_in_batch")
    several = live.record["split"] or live.record.get("emptied") or len(set(told.flatten().tolist())) > 1
    if bool((counts < 0).any()) or several:
        raise Inexpressible("the labels of the step are not all seen here, or its batches are of several steps")
    got, wanted = float(told.flatten()[0]), counts.sum(0).tolist()
    fits = got >= min(wanted) if live.record["world"] > 1 else got in {float(count) for count in wanted}
    if not fits:
        message = f"the count of the step is not that of its trained tokens, in {len(counts)} micro-batches"
        yield Evidence(where="num_items_in_batch", measured=got, limit=float(wanted[0]), message=message)


def reached(live: Live) -> Iterator[Evidence]:
    """Each large part of the model that ran and is to be trained got a gradient, and what is frozen is not updated.

    Why: what asks for gradients and gets none is trained in the settings only. The loss falls, by the rest. Where you
    say what shall be trained (``trained=``), what was frozen by accident is found too.

    Example: features of a tower that are taken under ``torch.no_grad``; checkpointed layers above embeddings that need
    no gradient.
    """
    rows = {part["name"]: part for part in live.record["parts"]}
    yield from _declared(live.record["frozen"])
    whole = rows[WHOLE]
    if whole["stale"]:
        message = "a frozen parameter still has a gradient, and the optimiser holds it: it is updated"
        yield Evidence(where="gradients", measured=str(whole["stale"]), limit="none", message=message)
    if live.record["elsewhere"]:
        raise Inexpressible(live.record["elsewhere"])
    if not whole["trained"]:
        yield Evidence(
            where="parameters", measured=0, limit="some", message="no parameter of the model is to be trained"
        )
        return
    if whole["without"] == whole["trained"] and not whole["moved"] and (whole["consumed"] or not whole["learns"]):
        raise Inexpressible("no gradient is left at the parameters, and no step has to show")
    if _bare(whole) and _meant(live):
        yield Evidence(where="gradients", measured="none", limit="some", message="the loss reaches no parameter")
        return
    for name, part in rows.items():
        bare = part["trained"] and part["without"] == part["trained"] and not part["moved"] and not part["consumed"]
        # What no optimizer holds, while it holds the rest, was left out of the training by whoever made it.
        held = part["outside"] < part["trained"] or whole["outside"] == whole["trained"]
        if name and bare and held and part["called"] and (not part["recorded"] or _sees(live, name)):
            message = f"{name} is called, its parameters are to be trained, and none of them has a gradient"
            yield Evidence(where="gradients", measured="none", limit="some", message=message)
            return


def _sees(live: Live, name: str) -> bool:
    """Whether a part is for media that the batch has: what else runs may make something that nobody asks for."""
    own = name.lower().rpartition(".")[2]  # a tower, and nothing in it: its pooler may run for nobody
    kinds = {kind for kind, words in MEDIA.items() if any(word in own for word in words)}
    try:
        return any(bool((live.view.types == MODALITIES.index(kind)).any()) for kind in kinds)
    except Inexpressible:
        return False


def _declared(frozen: list[str]) -> Iterator[Evidence]:
    for name in frozen[:1]:
        message = f"{len(frozen)} parameters that are to be trained are frozen, the first shown"
        yield Evidence(where="parameters", measured=name, limit="requires_grad", message=message)


def _bare(part: Mapping[str, Any]) -> bool:
    """Whether nothing of a part has a gradient other than zero, and nothing changed."""
    return bool(part["finite"] and not part["top"] and not part["moved"])


def _meant(live: Live) -> bool:
    """Whether the step has something to learn: a loss above zero, of some label."""
    losses, counts = live.tensors["step.loss"], live.tensors["step.counts"]
    trained = not len(counts) or bool((counts[:, 0] != 0).any())
    return trained and bool(len(losses)) and bool((losses.abs() > 0).any())


def stepped(live: Live) -> Iterator[Evidence]:
    """The step of the optimiser changed the parameters, of each large part that got gradients.

    Why: an optimiser that was made before the model was replaced, wrapped or given adapters updates parameters that
    nobody uses. The loss moves with the batches, as it does in training.

    Example: ``torch.optim.AdamW(model.parameters())``, and ``model = get_peft_model(model, ...)`` after it.
    """
    rows = {part["name"]: part for part in live.record["parts"]}
    if live.record["elsewhere"]:
        raise Inexpressible(live.record["elsewhere"])
    whole = rows[WHOLE]
    if not whole["finite"]:
        raise Inexpressible("a gradient is no finite number: the step may have been left out")
    if not whole["expected"]:
        raise Inexpressible("the learning rate is zero, or the step too small for the dtype, where it was looked")
    for name, part in rows.items():
        if part["expected"] and not part["moved"]:
            told = ", which holds none of it" if part["outside"] == part["trained"] else ""
            what = name or "the model"
            message = f"{what} has gradients, and its parameters are as before the step of the optimiser{told}"
            yield Evidence(where="parameters", measured="unchanged", limit="changed", message=message)
            return
