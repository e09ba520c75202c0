"""Wrong ways to find which feature goes where, of features that are put in and of those that are added."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.audits.components.masked_scatter.batch import Inputs
from assay.audits.components.masked_scatter.dealt import Deal, both, check, concatenated, counts, each, pairs

SEED = "seed case A2 of the project: fine-tuning Qwen2.5-VL"


@both("surplus", link=SEED)
def surplus_cut_off(inputs: Inputs, deal: Deal) -> Tensor:
    """Features are flattened, at least as many as placeholders are asked for, and the rest is cut off.

    Effect: a prompt that lost a placeholder trains on; every image after it has rows of the one before.
    """
    for name, (tokens, features) in counts(inputs).items():
        if features < tokens:
            raise ValueError(f"{name}: {tokens} placeholders, {features} features")
    return each(inputs, deal, lambda name, rows: rows[: int(inputs.mask(name).sum())])


@both("missing", "surplus")
def as_many_as_there_are(inputs: Inputs, deal: Deal) -> Tensor:
    """The smaller of both counts is used, so that nothing fails.

    Effect: placeholders keep the embedding of an id that was never trained, and the model answers without its image.
    """
    return each(inputs, deal)


@both("missing", link="https://github.com/vllm-project/vllm/issues/57740")
def features_used_again(inputs: Inputs, deal: Deal) -> Tensor:
    """Where features run out they start again from the first.

    Effect: a placeholder that a user typed shows the model a piece of some image of the batch.
    """

    def cycled(name: str, rows: Tensor) -> Tensor:
        tokens = int(inputs.mask(name).sum())
        if len(rows) > tokens:
            raise ValueError(f"{name}: {tokens} placeholders, {len(rows)} features")
        return rows[torch.arange(tokens, device=rows.device) % len(rows)]

    return each(inputs, deal, cycled)


@both("missing")
def one_feature_for_all_places(inputs: Inputs, deal: Deal) -> Tensor:
    """The features are assigned by the mask, and a single one is broadcast.

    Effect: an encoder that returns one pooled vector by mistake fills the whole image with it, and nothing fails.
    """
    spread = {name: tokens for name, (tokens, features) in counts(inputs).items() if features == 1}
    for name, (tokens, features) in counts(inputs).items():
        if features not in (1, tokens):
            raise ValueError(f"{name}: {tokens} placeholders, {features} features")
    return each(inputs, deal, lambda name, rows: rows.expand(spread.get(name, len(rows)), -1))


@both("missing")
def nothing_checked_without_features(inputs: Inputs, deal: Deal) -> Tensor:
    """Placeholders are looked at only where there are features.

    Effect: a sample whose image was lost on the way goes through as text, with a row of placeholders in it.
    """
    for name, (tokens, features) in counts(inputs).items():
        if features and tokens != features:
            raise ValueError(f"{name}: {tokens} placeholders, {features} features")
    return each(inputs, deal)


@both("compensated", "numbers")
def counted_over_all_modalities(inputs: Inputs, deal: Deal) -> Tensor:
    """The number of all features is compared with that of all placeholders.

    Effect: one frame too many and one crop too few pass, and everything between them is moved.
    """
    rows, mask = concatenated(inputs), inputs.masked()
    if len(rows) != int(mask.sum()):
        raise ValueError("visual features and visual tokens differ in number")
    return deal(inputs.embeddings, mask, inputs.joined() if inputs.fits() else rows)


@both("straddles", link="https://github.com/vllm-project/vllm/issues/57740")
def counted_over_the_batch(inputs: Inputs, deal: Deal) -> Tensor:
    """A list of features is concatenated before it is counted.

    Effect: a placeholder typed into one sample takes a row of the next one's image if that lost one; the sum is right.
    """
    check(inputs)
    return each(inputs, deal)


@both("numbers", link=SEED)
def error_of_a_reshape(inputs: Inputs, deal: Deal) -> Tensor:
    """Counts are held to one another by a reshape.

    Effect: "shape [0, 4, -1] is invalid" after a night of training, and nothing else to go by.
    """
    for tokens, features in counts(inputs).values():
        if tokens != features:
            raise RuntimeError("shape '[0, -1]' is invalid")
    return each(inputs, deal)


@both("order", "micro", link="https://github.com/microsoft/onnxruntime-genai/pull/2571")
def media_sorted_by_size(inputs: Inputs, deal: Deal) -> Tensor:
    """The encoder takes media by size, and what it gives is not put back in order.

    Effect: a large image stands in the placeholders of two small ones; the counts are right.
    """
    check(inputs)

    def sorted_rows(name: str, rows: Tensor) -> Tensor:
        return torch.cat(sorted(torch.split(rows, inputs.media(name)), key=len, reverse=True))

    return each(inputs, deal, sorted_rows)


@both("compensated", "chunks", link="https://github.com/osaurus-ai/vmlx-swift/pull/404")
def images_before_videos(inputs: Inputs, deal: Deal) -> Tensor:
    """One mask over all placeholders takes the features of all images, then those of all videos.

    Effect: a video before an image swaps the two, here and in every layer that adds to the same rows.
    """
    rows, mask = concatenated(inputs), inputs.masked()
    if len(rows) != int(mask.sum()):
        raise ValueError(f"tokens: {int(mask.sum())}, features: {len(rows)}")
    return deal(inputs.embeddings, mask, rows)


@both("neighbours", "micro", link="https://github.com/alibaba/Pai-Megatron-Patch/pull/649")
def sequence_first(inputs: Inputs, deal: Deal) -> Tensor:
    """Rows are held with the sequence first, and a mask over them meets features with the batch first.

    Effect: counts agree and nothing fails; samples whose images overlap in position swap their rows.
    """
    check(inputs)
    x = inputs.embeddings.transpose(0, 1)
    for name, rows in inputs.flat().items():
        x = deal(x, inputs.mask(name).t(), rows)
    return x.transpose(0, 1)


@both("micro", "order", link="https://github.com/huggingface/trl/pull/6570")
def shared_out_equally(inputs: Inputs, deal: Deal) -> Tensor:
    """Features are cut into as many equal parts as there are samples.

    Effect: right for one image of a size in each sample; otherwise answers are about another sample's image.
    """
    check(inputs)

    def shared(name: str, rows: Tensor) -> Tensor:
        own = inputs.mask(name).sum(1).tolist()
        share = -(-len(rows) // max(len(own), 1))
        index = [min(sample * share + i, len(rows) - 1) for sample, count in enumerate(own) for i in range(count)]
        return rows[index]

    return each(inputs, deal, shared)


@both("micro", "order", link="https://github.com/manjunathshiva/turboquant-mlx/pull/101")
def first_row_of_the_batch_alone(inputs: Inputs, deal: Deal) -> Tensor:
    """The count is taken over the batch, the places from its first row.

    Effect: right for a batch of one; the other samples keep their placeholders.
    """
    check(inputs)
    x = inputs.embeddings.clone()
    for name, rows in inputs.flat().items():
        first = inputs.mask(name).clone()
        first[1:] = False
        x = deal(x, first, rows)
    return x


@both("reaches", "chunks", link="https://github.com/THUDM/slime/issues/1379")
def tokens_cut_before_the_features(inputs: Inputs, deal: Deal) -> Tensor:
    """Each of two ranks has half of every row, and all features: it takes as many as it needs, from the first on.

    Effect: the second half of a row shows the model the first images again; one rank alone is right.
    """
    check(inputs)
    half = -(-inputs.input_ids.shape[1] // 2)
    out = []
    for part in (slice(0, half), slice(half, None)):
        x = inputs.embeddings[:, part]
        for name, rows in inputs.flat().items():
            x = deal(x, inputs.mask(name)[:, part], rows)
        out.append(x)
    return torch.cat(out, dim=1)


@both("layouts", "micro", link="https://github.com/unslothai/unsloth-zoo/pull/1026")
def first_of_a_ragged_list(inputs: Inputs, deal: Deal) -> Tensor:
    """Where media cannot be stacked, the first one is taken alone.

    Effect: batches with images of mixed sizes lose all but one, without an error.
    """
    check(inputs)

    def stacked(name: str, rows: Tensor) -> Tensor:
        media = inputs.media(name)
        return rows[: media[0]] if inputs.layout == "list" and len(set(media)) > 1 else rows

    return each(inputs, deal, stacked)


@both("strided")
def memory_read_from_its_start(inputs: Inputs, deal: Deal) -> Tensor:
    """The features' memory is read as if it were dense.

    Effect: slices of a padded batch give rows of pads and of other images.
    """
    check(inputs)
    return each(inputs, deal, lambda _name, rows: rows.as_strided(rows.shape, (rows.shape[1], 1)))


@both("mixed")
def promoted(inputs: Inputs, deal: Deal) -> Tensor:
    """Everything is brought to the dtype of the features.

    Effect: with a tower in float32 the language model runs in float32 too, or fails at its first matrix.
    """
    check(inputs)
    dtype = max((rows.dtype for rows in inputs.flat().values()), key=lambda d: d.itemsize, default=None)
    if dtype is None or dtype.itemsize <= inputs.embeddings.dtype.itemsize:
        return each(inputs, deal, lambda _name, rows: rows.to(inputs.embeddings.dtype))
    x = inputs.embeddings.to(dtype)
    for name, rows in inputs.flat().items():
        x = deal(x, inputs.mask(name), rows.to(dtype))
    return x


@both("text", link="https://github.com/TensorAuto/OpenTau/pull/179")
def text_scaled_again(inputs: Inputs, deal: Deal) -> Tensor:
    """Rows of text are multiplied by the square root of the width, although their layer did so.

    Effect: text is fifty times as large as images, and the model hardly learns from them.
    """
    check(inputs)
    scale = torch.where(inputs.masked(), 1.0, (1 + inputs.width) ** 0.5).to(inputs.embeddings.dtype)
    out = each(inputs, deal)
    return out * scale[..., None]


@both("text")
def padding_emptied(inputs: Inputs, deal: Deal) -> Tensor:
    """Rows of padding are set to zero on the way.

    Effect: where the pad id is that of another token, such as the end of a turn, that token loses its embedding.
    """
    check(inputs)
    return each(inputs, deal) * (inputs.input_ids != 0).to(inputs.embeddings.dtype)[..., None]


@both("visible")
def overflow_replaced(inputs: Inputs, deal: Deal) -> Tensor:
    """Features that are not numbers are replaced by zero.

    Effect: an encoder that overflows is never noticed.
    """
    check(inputs)
    return each(inputs, deal, lambda _name, rows: rows.nan_to_num(posinf=0.0, neginf=0.0))


@both("reaches", "gradients", link="https://github.com/QwenLM/Qwen-VL/issues/124")
def written_as_data(inputs: Inputs, deal: Deal) -> Tensor:
    """Features are written through ``.data``, past an error about an in-place operation.

    Effect: the forward is right, and the vision tower never learns.
    """
    check(inputs)
    return each(inputs, deal, lambda _name, rows: rows.detach())


@both("mutates")
def written_in_place(inputs: Inputs, deal: Deal) -> Tensor:
    """Features are written into the memory of the embeddings.

    Effect: under activation checkpointing and with a second loss they are put in twice; autograd does not see it.
    """
    check(inputs)
    out = each(inputs, deal)
    inputs.embeddings.data.copy_(out.data)
    return out


_MASKS: dict[str, Tensor] = {}


@both("chunks", link="https://github.com/Blaizzy/mlx-vlm/pull/1332")
def mask_of_the_whole_prompt(inputs: Inputs, deal: Deal) -> Tensor:
    """The mask is that of the first piece of a prompt, for all of its pieces.

    Effect: for prompts longer than a piece of the prefill, images are put at wrong offsets.
    """
    batch, length = inputs.input_ids.shape
    x = inputs.embeddings.clone()
    for name, rows in inputs.flat().items():
        kept = _MASKS.get(name)
        if kept is None or len(kept) != batch or kept.shape[1] <= length:
            check(inputs)
            _MASKS[name] = kept = inputs.mask(name)
        x = deal(x, kept[:, :length], rows)
    return x


FAULTS = pairs(globals())
