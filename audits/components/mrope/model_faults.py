"""Wrong models: one of Qwen3-VL's, right as it is, with one thing broken in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.mrope.model import DEFAULT_FAMILY, NAME
from assay.audits.families import sites
from assay.audits.families.discovery import loaded
from assay.audits.families.run import Model, ModelCall
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs


def _run(call: ModelCall, breakage: Callable[[Any, sites.Resolved], None]) -> Outputs:
    return _Broken(breakage)(call)


class _Broken(Model):
    """The default family's model with ``breakage`` done to each fresh one."""

    def __init__(self, breakage: Callable[[Any, sites.Resolved], None]) -> None:
        self._breakage = breakage
        super().__init__(loaded(DEFAULT_FAMILY))

    def _made(self) -> Any:
        model = super()._made()
        self._breakage(model, sites.resolve(model, self._family.sites))
        return model


def _ids(change: Callable[[Tensor], Tensor]) -> Callable[[Any, sites.Resolved], None]:
    """Change the positions on their way into the rotary module."""

    def breakage(_model: Any, found: sites.Resolved) -> None:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if "position_ids" in kwargs:
                return args, kwargs | {"position_ids": change(kwargs["position_ids"])}
            return (args[0], change(args[1]), *args[2:]), kwargs

        found.text_rotary.register_forward_pre_hook(hook, with_kwargs=True)

    return breakage


def _arguments(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Any, sites.Resolved], None]:
    """Change the keyword arguments of the whole model."""

    def breakage(model: Any, _found: sites.Resolved) -> None:
        model.register_forward_pre_hook(lambda _m, args, kwargs: (args, change(dict(kwargs))), with_kwargs=True)

    return breakage


def _repeated(ids: Tensor) -> Tensor:
    return ids[:1].expand_as(ids)


def _row_by_row(places: Tensor) -> Tensor:
    """Rows and columns [N,2] of patches, those of each image from left to right and from top to bottom."""
    image, wide = (places.sum(-1) == 0).cumsum(0), int(places.max()) + 1
    return places[((image * wide + places[:, 0]) * wide + places[:, 1]).argsort()]


@fault(NAME, "used", "axes", link="https://github.com/linkedin/Liger-Kernel/pull/276")
def one_row_for_all_axes(call: ModelCall) -> Outputs:
    """The temporal row of the ids stands on all three axes.

    Effect: boxes and places are off after fine-tuning; the loss looks as it should.
    """
    return _run(call, _ids(_repeated))


@fault(NAME, "precise")
def ids_in_the_dtype_of_the_weights(call: ModelCall) -> Outputs:
    """The ids are cast to bfloat16 with the rest of the batch.

    Effect: from token 257 on, neighbours share a position.
    """
    return _run(call, _ids(lambda ids: ids.bfloat16()))


@fault(NAME, "rotation", link="https://github.com/ml-explore/mlx-lm/pull/1768")
def sections_not_read(call: ModelCall) -> Outputs:
    """Height and width change places in the sections of the rotary module.

    Effect: a picture is seen turned on its side by half of the lanes.
    """

    def swap(_model: Any, found: sites.Resolved) -> None:
        time, height, width = found.text_rotary.mrope_section
        found.text_rotary.mrope_section = [time + 1, width, height - 1]

    return _run(call, swap)


@fault(NAME, "vision", link="https://github.com/warpfront/hipfire/issues/324")
def tower_without_rotary(call: ModelCall) -> Outputs:
    """The vision tower's tables are those of place zero for every patch.

    Effect: the tower sees a bag of patches; questions about places are answered at random.
    """

    def flatten(_model: Any, found: sites.Resolved) -> None:
        found.vision_rotary.register_forward_hook(
            lambda _m, _a, out: (torch.ones_like(out[0]), torch.zeros_like(out[1]))
        )

    return _run(call, flatten)


@fault(
    NAME, "vision", link="https://github.com/vllm-project/vllm/pull/52932",
    also=("https://github.com/lablup/mlxcel/issues/1610",),
)  # fmt: skip
def tower_counts_row_by_row(call: ModelCall) -> Outputs:
    """The processor hands over patches block by block, the tower takes them for rows of the image.

    Effect: all counts agree, answers are fluent, and each patch has the place of another one.
    """

    def breakage(_model: Any, found: sites.Resolved) -> None:
        def renumbered(_module: Any, args: tuple[Any, ...]) -> Any:
            return (args[0], _row_by_row(args[1]), *args[2:])

        found.vision_rotary.register_forward_pre_hook(renumbered)

    return _run(call, breakage)


@fault(NAME, "padding")
def mask_not_handed_on(call: ModelCall) -> Outputs:
    """The attention mask is dropped before the model sees it.

    Effect: right padding hides it behind causality; on the left every token attends to padding.
    """
    return _run(call, _arguments(lambda kwargs: kwargs | {"attention_mask": None}))


@fault(NAME, "order", "alone", link="https://github.com/Blaizzy/mlx-vlm/pull/1143")
def ids_of_the_first_sample(call: ModelCall) -> Outputs:
    """The ids of the first row serve the whole batch.

    Effect: every sample but the first one is rotated by somebody else's picture.
    """
    return _run(call, _ids(lambda ids: ids[:, :1].expand_as(ids)))


@fault(NAME, "explicit")
def handed_over_ids_collapse(call: ModelCall) -> Outputs:
    """Ids that the caller hands over are read as one row.

    Effect: packing trainers, which always hand over ids, train without height and width.
    """

    def collapse(kwargs: dict[str, Any]) -> dict[str, Any]:
        ids = kwargs.get("position_ids")
        return kwargs if ids is None else kwargs | {"position_ids": _repeated(ids)}

    return _run(call, _arguments(collapse))


@fault(NAME, "generation", "cached", link="https://github.com/Blaizzy/mlx-vlm/pull/1621")
def delta_off_by_one(call: ModelCall) -> Outputs:
    """Tokens decoded with a cache stand one position further than in a forward.

    Effect: all that is generated is at another distance from the prompt than in training.
    """
    return _run(call, _ids(lambda ids: ids + 1 if ids.shape[-1] == 1 else ids))


@fault(NAME, "stateless", link="https://github.com/Blaizzy/mlx-vlm/pull/1143")
def delta_of_the_call_before(call: ModelCall) -> Outputs:
    """What the call before left behind is added to the height of this one.

    Effect: a request changes the answers to all that come after it.
    """
    left: list[int] = []

    def add(ids: Tensor) -> Tensor:
        out = ids.clone()
        out[1] += torch.arange(ids.shape[-1]) * (left[-1] if left else 0)
        left.append(1)
        return out

    return _run(call, _ids(add))


@fault(NAME, "conserved", link="https://github.com/huggingface/trl/issues/6697")
def plain_ids_without_modalities(call: ModelCall) -> Outputs:
    """Where nobody says which tokens are pictures, the model takes them for text.

    Effect: a collator that drops an unknown key turns every picture into a strip.
    """

    def fill(kwargs: dict[str, Any]) -> dict[str, Any]:
        if "mm_token_type_ids" in kwargs or kwargs.get("input_ids") is None:
            return kwargs
        length = kwargs["input_ids"].shape[1]
        return kwargs | {"position_ids": torch.arange(length).expand(3, len(kwargs["input_ids"]), -1)}

    return _run(call, _arguments(fill))


@fault(NAME, "nondeterministic")
def noise_in_evaluation(call: ModelCall) -> Outputs:
    """Dropout stays on in evaluation.

    Effect: no two evaluations of a checkpoint agree.
    """
    out = dict(_run(call, lambda _model, _found: None))
    return out | {"logits": torch.nn.functional.dropout(out["logits"], 0.1)}


@fault(NAME, "leaks")
def seed_in_the_forward(call: ModelCall) -> Outputs:
    """The global generator is seeded in every forward.

    Effect: every step draws the same noise.
    """
    torch.manual_seed(0)
    return _run(call, lambda _model, _found: None)


FAULTS = gathered(globals())
