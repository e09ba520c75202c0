"""The laws of a whole model that concern its positions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.mrope import positions, readout, rotate
from assay.audits.components.mrope.model import NAME, Case, family_of
from assay.audits.families._release import within
from assay.audits.families.run import ModelCall
from assay.audits.laws.limits import difference, excess, floor, relative, row_reach
from assay.audits.laws.parity import exactly
from assay.audits.laws.trial import Trial
from assay.audits.terms import Evidence, Law, Operation
from assay.reference import mrope, vision_rope
from assay.reference.mrope_families import TEXT_ROTARIES
from assay.reference.mrope_rules import RULES
from assay.reference.vision_rope import VISION_TOWERS


def used(trial: Trial) -> Iterator[Evidence]:
    """The positions that reach the rotary module are those of the family's rule, for the batch as it was given.

    Why: a function that computes the right ids is worth nothing when the model is called without them, or falls back
    to plain ones. This looks at what the text model really used.

    Example: a forward that builds no three-axis ids when an optional tensor is absent.
    """
    out = trial.outcome.values
    truth = positions.reference(readout.position_inputs(out, trial.params))["positions"]
    got = readout.from_first(readout.visual_axes(out["positions"], len(truth)), out)
    want = readout.from_first(truth, out)
    yield from exactly("positions", got, want.to(got.dtype), "not the ids of the rule")


def precise(trial: Trial) -> Iterator[Evidence]:
    """Positions reach the rotary module as integers, or in a float that holds every one of them.

    Why: bfloat16 has no 257. Ids that were cast with the rest of the inputs lose their differences far from zero.

    Example: a trainer that moves a whole batch to bfloat16.
    """
    ids = trial.outcome.values["positions"]
    if ids.dtype in {torch.bfloat16, torch.float16}:
        yield Evidence(
            where="positions", measured=str(ids.dtype), limit="an integer dtype", message="positions lose integers"
        )


def rotation(trial: Trial) -> Iterator[Evidence]:
    """The queries and keys of the first layer are rotated as the reference rotates them at the positions in use.

    Why: it joins the three parts (ids, tables, rotation) as the model joins them.

    Example: sections read from a configuration key that this model does not have.
    """
    out, rotary = trial.outcome.values, TEXT_ROTARIES[family_of(trial.params).rule]
    inputs = readout.rotate_inputs(out, rotary.layout, rotary.pairing)
    truth = rotate.reference(readout.wide(inputs))
    eager = rotate.reference(readout.narrow(inputs))
    for name in ("q", "k"):
        reach = row_reach(getattr(inputs, name)) * inputs.attention_scaling
        ordinary = relative(difference(eager[name], truth[name]), reach)
        found = excess(
            name, relative(difference(out[f"site.{name}_out"], truth[name]), reach),
            floor([truth[name]], reach, torch.float32), functools.partial(list, [ordinary]),
            "the first layer is not rotated as the reference rotates it",
        )  # fmt: skip
        if found:
            yield found


def vision(trial: Trial) -> Iterator[Evidence]:
    """The vision tower's tables are those of each patch's row and column, in the order of the patches.

    Why: without them a tower sees a bag of patches; in another order each patch has its neighbour's place.

    Example: a port that leaves the two-dimensional rotary out, and answers every question about places wrongly.
    """
    out, family = trial.outcome.values, family_of(trial.params)
    tower = VISION_TOWERS[family.rule]
    grids = out["image_grids"] if "image_grids" in out else out["video_grids"]
    merge = RULES[family.rule].spatial_merge if tower.merged else 1
    places = vision_rope.patch_coordinates(grids, merge=merge, coordinates=tower.coordinates, first=tower.first)
    for name, got in (("cos", out["vision.cos"]), ("sin", out["vision.sin"])):
        wide, narrow = (
            _vision_table(name, places, tower.layout, got.shape[-1], d) for d in (torch.float64, torch.float32)
        )
        ordinary = relative(difference(narrow, wide), torch.ones_like(wide))
        found = excess(
            f"vision.{name}", difference(got.reshape(wide.shape), wide),
            floor([wide], torch.ones_like(wide), torch.float32),
            functools.partial(list, [ordinary]), "the tables of the vision tower are not those of the patches",
        )  # fmt: skip
        if found:
            yield found


def _vision_table(name: str, places: Tensor, layout: str, width: int, dtype: torch.dtype) -> Tensor:
    lanes = vision_rope.vision_lanes(layout, width, dtype=dtype)
    tables = dict(zip(("cos", "sin"), vision_rope.vision_tables(places, lanes), strict=True))
    cos, sin = mrope.expand_tables(tables["cos"], tables["sin"], lanes.pairing)
    return cos if name == "cos" else sin


def padding(trial: Trial) -> Iterator[Evidence]:
    """Left padding and right padding give the same logits at real tokens.

    Why: training pads right, generation pads left.

    Example: ids counted from the start of the row, padding included.
    """
    left = trial.run(dataclasses.replace(trial.inputs, padding="left"))
    yield from readout.same(trial, left, trial.outcome.values, "left padding differs from right padding")


def order(trial: Trial) -> Iterator[Evidence]:
    """Permuting the samples of a batch permutes the logits.

    Why: images and grids are flat lists over the batch; whoever loses count shows a sample another one's image.

    Example: deltas of the first sample used for all.
    """
    call: ModelCall = trial.inputs
    turned = trial.run(dataclasses.replace(call, samples=call.samples[::-1], keys=call.keys[::-1]))
    back = {name: value.flip(0) if name in ("logits", "attention_mask") else value for name, value in turned.items()}
    yield from readout.same(trial, back, trial.outcome.values, "a sample's logits depend on its place in the batch")


def alone(trial: Trial) -> Iterator[Evidence]:
    """A sample gives the same logits alone as in a batch.

    Why: what a sample is trained on must not depend on its neighbours.

    Example: a mask or a table that is built for the first row and used for all.
    """
    call: ModelCall = trial.inputs
    whole = trial.outcome.values
    for sample, key in enumerate(call.keys):
        single = trial.run(dataclasses.replace(call, samples=(call.samples[sample],), keys=(key,)))
        mine = {name: whole[name][sample : sample + 1] for name in ("logits", "attention_mask")}
        yield from readout.same(trial, single, mine, f"sample {sample} alone differs from itself in the batch")


def explicit(trial: Trial) -> Iterator[Evidence]:
    """Handing over the ids that the model made itself changes nothing.

    Why: a trainer that computes ids, or packs them, relies on the model taking them as they are.

    Example: a model that reads the temporal row as the text row when it is handed three.
    """
    out = trial.outcome.values
    own = readout.visual_axes(out["positions"], readout.rule(trial).axes)
    given = trial.run(dataclasses.replace(trial.inputs, positions=own))
    yield from readout.same(trial, given, out, "the model's own ids, handed over, give other logits")


def axes(trial: Trial) -> Iterator[Evidence]:
    """Each position axis has a say: moving image tokens along it changes the logits.

    Why: an axis that is read by nothing makes every image a strip of text, and no loss shows it.

    Example: a section list in the configuration that the code does not look at.
    """
    out = trial.outcome.values
    truth = readout.visual_axes(out["positions"], readout.rule(trial).axes)
    plain = trial.run(dataclasses.replace(trial.inputs, positions=truth))["logits"]
    visual = (out["token_types"] == 1) | (out["token_types"] == 2)
    for axis in range(len(truth)):
        spread = torch.arange(truth.shape[-1]) % 5
        moved = truth.clone()
        moved[axis] += torch.where(visual, spread, 0)
        after = trial.run(dataclasses.replace(trial.inputs, positions=moved))["logits"]
        if torch.equal(after, plain):
            yield Evidence(
                where="logits",
                measured="unchanged",
                limit="changed",
                index=(axis,),
                message=f"axis {axis} of the positions has no effect",
            )


def generation(trial: Trial) -> Iterator[Evidence]:
    """What ``generate()`` decodes token by token equals one forward over the same tokens, in positions and logits.

    Why: a model is trained by whole sequences and used token by token. Another position for the prompt or for what
    follows is another model at inference.

    Example: an interval between frames that training hands over and generation does not.
    """
    yield from _decoded(trial, dataclasses.replace(trial.inputs, padding="left", decode="generate"))


def cached(trial: Trial) -> Iterator[Evidence]:
    """Calling the model with its cache, token after token, equals one forward over the same tokens.

    Why: whoever decodes by hand, in a rollout or a server, relies on the delta that the first call kept.

    Example: text positions that restart inside a video while the delta is taken from its last frame.
    """
    call: ModelCall = trial.inputs
    for sample, key in zip(call.samples, call.keys, strict=True):
        yield from _decoded(trial, dataclasses.replace(call, samples=(sample,), keys=(key,), decode="forward"))


def _decoded(trial: Trial, call: ModelCall) -> Iterator[Evidence]:
    out = trial.run(call)
    axes = readout.rule(trial).axes
    got, want = (
        readout.from_first(readout.visual_axes(out[f"{kind}.positions"], axes), out) for kind in ("decoded", "full")
    )
    yield from exactly("positions", got, want, "decoding uses other ids than one forward")
    reach = out["full.logits"].abs().amax()
    narrow = dataclasses.replace(call, dtype="float32")
    found = excess(
        "logits", relative(difference(out["decoded.logits"], out["full.logits"]), reach),
        floor([], reach, torch.float32),
        lambda: [relative(difference(trial.run(narrow)["full.logits"], out["full.logits"]), reach)],
        "decoding gives other logits than one forward",
    )  # fmt: skip
    if found:
        yield found


def stateless(trial: Trial) -> Iterator[Evidence]:
    """A model that has answered another batch before gives the same logits.

    Why: deltas, masks and tables kept from one call to the next are wrong for the next.

    Example: position deltas of the previous batch added to this one.
    """
    other = ("t3 i6x4 t2", "t8", "t1 i2x2 t4")[: 1 + len(trial.params.samples)]
    if not set(family_of(trial.params).modalities) & {"image"}:
        other = ("t3", "t8")
    again = trial.run(dataclasses.replace(trial.inputs, before=other))
    yield from readout.same(trial, again, trial.outcome.values, "the call before changed the logits")


def conserved(trial: Trial) -> Iterator[Evidence]:
    """Leaving out a tensor that the positions are made from is an error, or changes nothing.

    Why: collators drop what they do not know. A model that then falls back to plain positions trains without them.

    Example: modality ids that a collator did not pass on; the model numbers images as text.
    """
    for name in ("mm_token_type_ids", "image_grid_thw", "video_grid_thw"):
        outcome = trial.attempt(dataclasses.replace(trial.inputs, drop=(name,)))
        if outcome.raised is None and int(outcome.values["dropped"]):
            for found in readout.same(
                trial, outcome.values, trial.outcome.values, f"without {name} the logits are others"
            ):
                yield dataclasses.replace(found, where=name)


def _by_rule(_operation: Operation, case: Case) -> str | None:
    kind = RULES[family_of(case).rule].kind
    return None if kind in {"blocks", "sequence"} else f"{case.family} has no positions by token types"


def _rotated(_operation: Operation, case: Case) -> str | None:
    return None if family_of(case).rule in TEXT_ROTARIES else f"{case.family} has plain RoPE"


def _towered(_operation: Operation, case: Case) -> str | None:
    if not case.modalities & {"image", "video"}:
        return "nothing to see in this case"
    family = family_of(case)
    if family.rule not in VISION_TOWERS:
        return f"{case.family} has no rotary vision tower"
    return None if within(">=5.17.0.dev0") else "vision rotary modules return no tables before transformers 5.17"


def _several(_operation: Operation, case: Case) -> str | None:
    return None if len(case.samples) > 1 else "one sample"


def _visual(operation: Operation, case: Case) -> str | None:
    return _by_rule(operation, case) if case.modalities & {"image", "video"} else "nothing but text"


def _built(applies: Callable[[Operation, Case], str | None] | None) -> Callable[[Operation, Case], str | None]:
    """A law applies to a family without a tiny model too: it is then UNKNOWN, not passed over."""

    def check(operation: Operation, case: Case) -> str | None:
        try:
            family_of(case)
        except LookupError:
            return None
        return applies(operation, case) if applies else None

    return check


def _law(check: Any, applies: Callable[[Operation, Case], str | None] | None = None) -> Law:
    return Law.of((NAME,), check, _built(applies))


LAWS = (
    _law(used, _by_rule),
    _law(precise),
    _law(rotation, _rotated),
    _law(vision, _towered),
    _law(padding, _several),
    _law(order, _several),
    _law(alone, _several),
    _law(explicit, _by_rule),
    _law(axes, _visual),
    _law(generation),
    _law(cached),
    _law(stateless),
    _law(conserved, _visual),
)
