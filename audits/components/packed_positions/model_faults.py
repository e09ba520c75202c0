"""Wrong packing around a whole model: right families that are told of their samples in a wrong way."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.packed_positions.model import DEFAULT_FAMILY, NAME
from assay.audits.families.causal import loaded
from assay.audits.families.packed_run import PackedCall, PackedModel
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs
from assay.reference import packed_positions

Telling = dict[str, Any]
Breakage = Callable[[Telling, list[int], PackedCall], Telling]
"""From what a model is told, the lengths of the samples and the call, to what it is told instead."""
BADLY_TAKEN = ("ones", "flat", "cached", "trainer")
"""Ways of telling that transformers' own models take badly: faults are not to be caught by that."""

_calls = itertools.count()


class _Told(PackedModel):
    """A family's model with ``breakage`` done to whatever it is told of a packed row."""

    def __init__(self, breakage: Breakage, family: str) -> None:
        self._breakage = breakage
        super().__init__(loaded(family))

    def __call__(self, call: PackedCall) -> Outputs:
        told = "mask" if call.told in BADLY_TAKEN else call.told
        return super().__call__(dataclasses.replace(call, told=told))

    def telling(self, model: Any, call: PackedCall, alone: Sequence[Mapping[str, Any]]) -> Telling:
        right = super().telling(model, call, alone)
        return self._breakage(right, [batch["input_ids"].shape[1] for batch in alone], call)


@functools.lru_cache(maxsize=1)
def _told(breakage: Breakage, family: str = DEFAULT_FAMILY) -> _Told:
    """One for all calls of a fault: building a model takes longer than a call."""
    return _Told(breakage, family)


def _as_it_is(told: Telling, _lengths: list[int], _call: PackedCall) -> Telling:
    return told


def clean(call: PackedCall) -> Outputs:
    """The default family, told rightly: what the faults depart from."""
    return _told(_as_it_is)(call)


def _masked(told: Telling, numbers: Tensor) -> Telling:
    """With the mask of these numbers of samples [1,T], in the place of what else there is."""
    ids = told["position_ids"]
    ids = ids[1:] if ids.ndim == 3 and len(ids) > 3 else ids
    return {"position_ids": ids, "attention_mask": packed_positions.attention_boundaries(numbers, torch.float64)}


def _of_call(told: Telling, call: PackedCall) -> Telling:
    """Masks in the dtype of the model."""
    mask = told.get("attention_mask")
    if mask is None or not mask.is_floating_point():
        return told
    dtype = getattr(torch, call.dtype)
    return {
        **told,
        "attention_mask": torch.zeros_like(mask, dtype=dtype).masked_fill(mask != 0, torch.finfo(dtype).min),
    }


def _numbers(lengths: list[int]) -> Tensor:
    return packed_positions.segments_of_lengths(torch.tensor(lengths))[None]


def _ones(told: Telling, lengths: list[int], _call: PackedCall) -> Telling:
    return {**told, "attention_mask": torch.ones(1, sum(lengths), dtype=torch.int64)}


def _ones_if_eager(told: Telling, lengths: list[int], call: PackedCall) -> Telling:
    return _ones(told, lengths, call) if call.attention == "eager" else told


def _first_boundary(told: Telling, lengths: list[int], call: PackedCall) -> Telling:
    return _of_call(_masked(told, _numbers(lengths).clamp(max=2)), call)


def _first_eight(told: Telling, lengths: list[int], call: PackedCall) -> Telling:
    return _of_call(_masked(told, _numbers(lengths).clamp(max=8)), call)


_kept: dict[int, Tensor] = {}


def _by_length(told: Telling, lengths: list[int], call: PackedCall) -> Telling:
    numbers = _kept.setdefault(sum(lengths), _numbers(lengths))
    return _of_call(_masked(told, numbers), call)


def _two_back(told: Telling, lengths: list[int], call: PackedCall) -> Telling:
    numbers = _numbers(lengths)
    apart = (numbers[:, :, None] - numbers[:, None, :]).abs() == 1
    mask = torch.zeros(apart.shape, dtype=torch.float64).masked_fill(apart | ~torch.ones_like(apart).tril(), -1.0)
    return _of_call({**_masked(told, numbers), "attention_mask": mask[:, None]}, call)


def _time_for_text(told: Telling, _lengths: list[int], _call: PackedCall) -> Telling:
    ids = told["position_ids"]
    return {"position_ids": torch.cat([ids[1:2], ids[1:]])} if ids.ndim == 3 and len(ids) == 4 else told


def _equal_axes(told: Telling, lengths: list[int], _call: PackedCall) -> Telling:
    text = torch.cat([torch.arange(n) for n in lengths])
    return {**told, "position_ids": text.expand_as(told["position_ids"])}


def _first_numbered(told: Telling, lengths: list[int], _call: PackedCall) -> Telling:
    ids = told["position_ids"].clone()
    ids[-3:, :, lengths[0] :] = 1
    return {**told, "position_ids": ids}


def _run_on(told: Telling, lengths: list[int], call: PackedCall) -> Telling:
    row = torch.arange(sum(lengths))[None]
    return _of_call({**_masked(told, _numbers(lengths)), "position_ids": row}, call)


def _nothing(told: Telling, lengths: list[int], _call: PackedCall) -> Telling:
    return {"position_ids": torch.arange(sum(lengths)).expand_as(told["position_ids"])}


def _plain_mask(told: Telling, lengths: list[int], call: PackedCall) -> Telling:
    return _of_call(_masked(told, torch.ones(1, sum(lengths), dtype=torch.int64)), call)


class _Recurrent(_Told):
    """A model whose first layer mixes each token with the one before it in the row, told of samples or not."""

    def _made(self) -> Any:
        model = super()._made()
        model.model.layers[0].register_forward_pre_hook(_mixes)
        return model


def _mixes(_layer: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    hidden = args[0]
    return (hidden + torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], dim=1) / 2, *args[1:])


@functools.lru_cache(maxsize=1)
def _recurrent() -> _Recurrent:
    return _Recurrent(_as_it_is, "llama")


def _drifting(told: Telling, _lengths: list[int], _call: PackedCall) -> Telling:
    return {**told, "position_ids": told["position_ids"] + next(_calls) % 2}


@fault(NAME, "isolated", "separate", "unpacked", link="https://github.com/huggingface/transformers/pull/46634")
def mask_of_ones_beside_the_ids(call: PackedCall) -> Outputs:
    """The collator adds an attention mask of ones, which turns the detection of samples off.

    Effect: each sample sees all those before it; the loss is better for it and the model worse.
    """
    return _told(_ones)(call)


@fault(NAME, "separate", "isolated", link="https://github.com/axolotl-ai-cloud/axolotl/pull/3796")
def apart_with_one_attention_only(call: PackedCall) -> Outputs:
    """Samples are kept apart with the attention that the tests use, and not with another.

    Effect: whether a model is trained on leaks depends on what was installed.
    """
    return _told(_ones_if_eager)(call)


@fault(NAME, "isolated", "separate")
def first_boundary_only(call: PackedCall) -> Outputs:
    """What begins a sample is looked for once: all after the second's start is one.

    Effect: rows of two samples, as in most tests, are right.
    """
    return _told(_first_boundary)(call)


@fault(NAME, "separate", "isolated")
def apart_from_the_next_only(call: PackedCall) -> Outputs:
    """A sample is kept apart from the one before it, and sees those before that.

    Effect: the third sample of a row looks into the first.
    """
    return _told(_two_back)(call)


@fault(NAME, "separate", "unpacked", link="https://github.com/huggingface/transformers/pull/44158")
def time_axis_tells_samples(call: PackedCall) -> Outputs:
    """The time axis is handed over where the text's row belongs.

    Effect: each token of an image becomes a sample of its own, and sees nothing before it.
    """
    return _told(_time_for_text)(call)


@fault(NAME, "unpacked", link="https://github.com/NVIDIA-NeMo/Automodel/pull/2172")
def one_axis_on_all(call: PackedCall) -> Outputs:
    """Ids 0, 1, 2, ... of each sample are repeated on all axes: the packer has no rule of the model.

    Effect: samples are kept apart, and every image is a strip of patches. Nothing but the answers shows it.
    """
    return _told(_equal_axes)(call)


@fault(NAME, "unpacked", link="https://github.com/hiyouga/LlamaFactory/pull/7754")
def first_sample_numbered_only(call: PackedCall) -> Outputs:
    """The rule numbers the first sample; all tokens of the others stand at one position.

    Effect: word order is lost in all samples but the first of each row.
    """
    return _told(_first_numbered)(call)


@fault(NAME, "unpacked", link="https://github.com/pytorch/torchtitan/issues/2559")
def positions_run_on(call: PackedCall) -> Outputs:
    """Attention is cut at each sample, and positions count through the row.

    Effect: with learned positions every sample but the first is another one; with rotary ones it is hidden, until
    something is scaled by length.
    """
    return _told(_run_on, "gpt2")(call)


@fault(NAME, "separate", "isolated", "unpacked", link="https://github.com/modelscope/ms-swift/issues/4439")
def nothing_told(call: PackedCall) -> Outputs:
    """The path of the flattened batch to the model loses position ids and lengths; the model counts for itself.

    Effect: answers hold what was asked for in other samples.
    """
    return _told(_nothing)(call)


@fault(
    NAME, "separate", "isolated", link="https://github.com/huggingface/transformers/pull/39194",
    also=("https://github.com/huggingface/transformers",),  # AFMoE, OPT, BioGPT and others of 5.23.0
)  # fmt: skip
def mask_made_without_the_ids(call: PackedCall) -> Outputs:
    """The family's forward takes position ids and makes its mask without them.

    Effect: positions restart and attention does not; of two families side by side in a list, one leaks.
    """
    return _told(_plain_mask)(call)


@fault(NAME, "separate", "isolated", "unpacked", link="https://github.com/modelscope/ms-swift/issues/9618")
def state_runs_on(call: PackedCall) -> Outputs:
    """Attention is cut at each sample; a convolution or a recurrent state beside it hears of no sample.

    Effect: the first tokens of a sample carry the end of the one before, in every hybrid model.
    """
    return _recurrent()(call)


@fault(NAME, "nondeterministic")
def positions_from_the_call_before(call: PackedCall) -> Outputs:
    """An offset of the positions is kept from call to call, as for decoding.

    Effect: what a row is trained on depends on the row before.
    """
    return _told(_drifting, "gpt2")(call)


@fault(NAME, "leaks")
def seeds_in_the_forward(call: PackedCall) -> Outputs:
    """The global generator is seeded in each forward, for the sake of the same dropout when it is done again.

    Effect: every dropout mask is the same from then on.
    """
    torch.manual_seed(next(_calls))
    return clean(call)


@fault(NAME, "separate", "unpacked")
def eight_samples_at_most(call: PackedCall) -> Outputs:
    """Boundaries go into a buffer of a fixed size, with room for eight samples.

    Effect: in rows of many short samples all from the eighth on are one.
    """
    return _told(_first_eight)(call)


@fault(NAME, "recut")
def masks_kept_by_length(call: PackedCall) -> Outputs:
    """The mask of a row is kept, and used for every row of as many tokens.

    Effect: packs are all of one length: from the second on they are cut where the first one was.
    """
    return _told(_by_length)(call)


FAULTS = gathered(globals())
