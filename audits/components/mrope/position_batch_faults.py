"""Wrong position ids: one dimension for three, padding, neighbours in the batch, and decoding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from assay.audits.components.mrope.position_faults import TEXT, forgiving, numbered
from assay.audits.components.mrope.positions import NAME, Inputs
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs


def counted(inputs: Inputs) -> Tensor:
    """One-dimensional ids [3,B,S]: real tokens 0, 1, 2, ... on every axis, padding zero."""
    real = inputs.attention_mask
    return ((real.cumsum(-1) - 1) * real).expand(3, -1, -1)


def lengths(inputs: Inputs) -> Tensor:
    """Real tokens of each sample [B]."""
    return inputs.attention_mask.sum(-1)


def masked(inputs: Inputs, ids: Tensor) -> Tensor:
    """Ids with zeros at padding."""
    return torch.where(inputs.attention_mask.bool(), ids, 0)


@fault(NAME, "blocks", "duration", "parity", link="https://github.com/NVIDIA-NeMo/Automodel/pull/2172")
def one_dimension_on_three_axes(inputs: Inputs) -> Outputs:
    """Each sample is numbered 0, 1, 2, ... and the row repeated on three axes, since the packer has no position hook.

    Effect: a vision-language model trains without rows and columns as soon as packing is on. Packed collators of
    other trainers do the same.
    """
    return {"positions": counted(inputs), "next": lengths(inputs)}


@fault(NAME, "blocks", "continues", "parity", link="https://github.com/QwenLM/Qwen3-VL/issues/488")
def one_dimension_in_training_only(inputs: Inputs) -> Outputs:
    """The training forward gets no ids and falls back to one dimension; generation goes on with the right delta.

    Effect: a model is trained with one geometry and asked with another.
    """
    return {"positions": counted(inputs), "next": numbered(inputs)["next"]}


@fault(NAME, "blocks", "parity", link="https://github.com/huggingface/trl/issues/6697")
def silent_fallback_for_images(inputs: Inputs) -> Outputs:
    """Without token types the ids of a batch with images cannot be made, and one dimension is used with no error.

    Effect: dropping one tensor in a collator removes the layout of all images; text batches are right.
    """
    if not len(inputs.image_grids):
        return numbered(inputs)
    return {"positions": counted(inputs), "next": lengths(inputs)}


@fault(NAME, "padding", "blocks", "parity", link="https://github.com/linkedin/Liger-Kernel/pull/276")
def cache_positions_for_ids(inputs: Inputs) -> Outputs:
    """A patched forward numbers the padded row from its first place, for it forgot to ask for position ids.

    Effect: boxes are off after fine-tuning, and the padding side moves every token.
    """
    width = inputs.token_types.shape[1]
    ids = torch.arange(width).expand(3, len(inputs.token_types), width)
    return {"positions": masked(inputs, ids), "next": torch.full_like(lengths(inputs), width)}


@fault(NAME, "text_only", "resumes", "parity")
def text_on_the_time_axis_only(inputs: Inputs) -> Outputs:
    """Text advances in time, but stands in row zero and column zero.

    Effect: two thirds of the lanes do not turn for text: the base model's knowledge of order is lost.
    """
    out = dict(numbered(inputs))
    ids = out["positions"].clone()
    ids[1:] = torch.where(inputs.token_types == TEXT, 0, ids[1:])
    return out | {"positions": ids}


@fault(NAME, "resumes", "continues", "parity")
def last_token_off_by_one(inputs: Inputs) -> Outputs:
    """The last token is numbered when the end marker has been counted already.

    Effect: a gap before the first generated token, where training had none.
    """
    out = dict(numbered(inputs))
    ids = out["positions"].clone()
    for sample, real in _rows(inputs):
        ids[:, sample, real.nonzero()[-1]] += 1
    return out | {"positions": ids}


@fault(NAME, "prefix", "starts", "parity")
def images_after_all_text(inputs: Inputs) -> Outputs:
    """Text is numbered first and images get the ids beyond it.

    Effect: the id of an image depends on text that comes after it, which is not there yet when decoding.
    """
    out = dict(numbered(inputs))
    ids = out["positions"].clone()
    for sample, real in _rows(inputs):
        text = real & (inputs.token_types[sample] == TEXT)
        ids[:, sample, text] = torch.arange(int(text.sum()))
        ids[:, sample, real & ~text] += int(text.sum())
    return out | {"positions": ids}


@fault(NAME, "padding", "parity", link="https://github.com/NVIDIA-NeMo/Megatron-Bridge/pull/1988")
def ids_of_the_unpadded_row(inputs: Inputs) -> Outputs:
    """Ids are computed for rows without padding and put back at the front, wherever the tokens stand.

    Effect: with padding on the left every token has the id of a later one, and some have none.
    """
    out = dict(numbered(inputs))
    ids = torch.zeros_like(out["positions"])
    for sample, real in _rows(inputs):
        ids[:, sample, : int(real.sum())] = out["positions"][:, sample, real]
    return out | {"positions": masked(inputs, ids)}


@fault(NAME, "neighbours", "order", "text_only", "parity", link="https://github.com/hiyouga/LlamaFactory/pull/7754")
def segment_numbers_taken_for_a_mask(inputs: Inputs) -> Outputs:
    """The mask holds the number of each packed sample, and only tokens whose number is one are given ids.

    Effect: all samples but the first of a pack stand still at the filler's id; the loss is hardly higher.
    """
    out = dict(numbered(inputs))
    ids = out["positions"].clone()
    ids[:, 1:] = 1
    return out | {"positions": masked(inputs, ids)}


@fault(NAME, "neighbours", "text_only", "parity", link="https://github.com/pytorch/torchtitan/issues/2559")
def numbering_runs_through_samples(inputs: Inputs) -> Outputs:
    """The numbering is not restarted where the next sample of a pack begins.

    Effect: attention stops at the boundary of a sample and positions do not: far ids for late samples.
    """
    out = numbered(inputs)
    before = out["next"].cumsum(0) - out["next"]
    return {"positions": masked(inputs, out["positions"] + before[None, :, None]), "next": out["next"] + before}


@fault(NAME, "neighbours", "order", "parity")
def grids_restart_with_every_sample(inputs: Inputs) -> Outputs:
    """The index into the list of grids is set back to zero for each sample of the batch.

    Effect: the second sample's images are numbered with the first one's sizes; nothing fails.
    """
    rows = zip(inputs.token_types[:, None], inputs.attention_mask[:, None], strict=True)
    alone = [dataclasses.replace(inputs, token_types=types, attention_mask=mask) for types, mask in rows]
    parts = [numbered(one, take=forgiving, strict=False) for one in alone]
    return {
        "positions": torch.cat([part["positions"] for part in parts], dim=1),
        "next": torch.cat([part["next"] for part in parts]),
    }


@fault(NAME, "continues", "neighbours", "parity")
def delta_counts_padding(inputs: Inputs) -> Outputs:
    """The delta is made for rows without padding and added to the length of the padded row.

    Effect: all samples but the longest generate at a distance from their prompt.
    """
    out = dict(numbered(inputs))
    return out | {"next": out["next"] - lengths(inputs) + inputs.token_types.shape[1]}


@fault(NAME, "continues", "parity", link="https://github.com/Blaizzy/mlx-vlm/pull/1621")
def delta_not_saved(inputs: Inputs) -> Outputs:
    """The first pass makes the ids and forgets how far they are from the token count.

    Effect: after an image, generation goes on at the number of tokens, far beyond the largest id.
    """
    return {**numbered(inputs), "next": lengths(inputs)}


@fault(NAME, "continues", "neighbours", "parity", link="https://github.com/Blaizzy/mlx-vlm/pull/1095")
def delta_of_another_row(inputs: Inputs) -> Outputs:
    """Rows of one batch share one delta, that of an image row.

    Effect: text-only requests decode at the wrong place as soon as an image request is served beside them.
    """
    out = dict(numbered(inputs))
    delta = out["next"] - lengths(inputs)
    return out | {"next": lengths(inputs) + delta.min()}


@fault(NAME, "continues", "parity")
def delta_of_rows_and_columns(inputs: Inputs) -> Outputs:
    """Where decoding continues is looked up on the height and width axes, for they hold the largest ids of an image.

    Effect: right wherever text comes last; after a video that ends the prompt, the answer starts inside the video.
    """
    out = dict(numbered(inputs))
    following = out["next"].clone()
    for sample, real in _rows(inputs):
        following[sample] = out["positions"][1:, sample, real].max() + 1
    return out | {"next": following}


@fault(NAME, "padding", "starts", "parity")
def block_beside_padding_starts_at_one(inputs: Inputs) -> Outputs:
    """A block that opens a padded row starts after the id of the padding before it.

    Effect: with padding on the left, samples that begin with an image are one id late; those that begin with text are
    right.
    """
    out = {name: value.clone() for name, value in numbered(inputs).items()}
    for sample, real in _rows(inputs):
        late = not bool(real[0]) and int(inputs.token_types[sample, real][0]) != TEXT
        out["positions"][:, sample, real] += int(late)
        out["next"][sample] += int(late)
    return out


@fault(NAME, "unmasked")
def counted_without_a_mask(inputs: Inputs) -> Outputs:
    """Where there is no mask the ids are plain counts, for the mask is what the numbering loops over.

    Effect: packed rows, and rows of equal length, train without rows and columns; the padded ones of a test have them.
    """
    if "attention_mask" not in inputs.absent:
        return numbered(inputs)
    return {"positions": counted(inputs), "next": lengths(inputs)}


@fault(NAME, "absent")
def counted_without_grids_of_videos(inputs: Inputs) -> Outputs:
    """Grids of no rows are taken for grids: a batch that has both kinds of them goes another way than one that has not.

    Effect: a collator that concatenates nothing to a tensor of no rows loses the layout of all images.
    """
    if not inputs.empty:
        return numbered(inputs)
    return {"positions": counted(inputs), "next": lengths(inputs)}


_served: dict[int, Tensor] = {}


@fault(NAME, "nondeterministic", "parity", link="https://github.com/Blaizzy/mlx-vlm/pull/1143")
def delta_of_the_previous_request(inputs: Inputs) -> Outputs:
    """The delta is kept on the model, and decoding reads it after another request has overwritten it.

    Effect: answers degrade whenever two requests overlap.
    """
    out = dict(numbered(inputs))
    own = out["next"] - lengths(inputs)
    stale = _served.get(len(own), own)
    _served[len(own)] = own
    return out | {"next": lengths(inputs) + stale}


@fault(NAME, "mutates")
def grids_merged_in_place(inputs: Inputs) -> Outputs:
    """Heights and widths are divided by the merge size in the caller's own tensors.

    Effect: the vision tower, or the second epoch, sees grids of a quarter of the size.
    """
    out = numbered(inputs)
    for grids in (inputs.image_grids, inputs.video_grids):
        grids[:, 1:] //= inputs.spatial_merge
    return out


@fault(NAME, "leaks")
def generator_seeded(inputs: Inputs) -> Outputs:
    """The global random generator is seeded, to make a fallback reproducible.

    Effect: dropout and shuffling repeat from then on.
    """
    torch.manual_seed(0)
    return numbered(inputs)


@fault(NAME, "returns")
def ids_in_floating_point(inputs: Inputs) -> Outputs:
    """Ids are returned in the dtype in which the times were computed.

    Effect: whatever casts them to the model's dtype next rounds them to bfloat16.
    """
    return {name: value.float() for name, value in numbered(inputs).items()}


def _rows(inputs: Inputs) -> Iterator[tuple[int, Tensor]]:
    """Samples with tokens, each with the mask of its real ones."""
    for sample, real in enumerate(inputs.attention_mask.bool()):
        if bool(real.any()):
            yield sample, real


FAULTS = gathered(vars())
