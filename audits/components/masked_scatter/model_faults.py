"""Wrong forwards of a family: its embeddings and placeholders, with a merge that is broken in one way in each."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from assay.audits.components.masked_scatter.dealt import put
from assay.audits.components.masked_scatter.model import DEFAULT_FAMILY, NAME
from assay.audits.families.scatter_given import LAYERS
from assay.audits.families.scatter_run import ScatterCall, ScatterModel
from assay.audits.families.scatter_seen import Seen
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs

Rows = Mapping[str, Tensor]
"""Features [N,H] of each modality that has some."""
Masks = Mapping[str, Tensor]
"""The placeholders [B,S] of each modality that the family has."""
Merge = Callable[[Tensor, Masks, Rows], Tensor]
"""Embeddings of the ids [B,S,H] to what the text model gets."""
Check = Callable[[Masks, Mapping[str, list[Tensor]]], None]
"""ValueError for placeholders [B,S] and media [n,H] that do not fit."""


class Written(ScatterModel):
    """The family with a forward of ours up to its text model."""

    def __init__(self) -> None:
        """Take the embeddings and the ids of the default family."""
        super().__init__(DEFAULT_FAMILY)
        self.merge: Merge = merged
        self.check: Check = checked
        self.layers: Merge = merged

    def _run(self, ids: Tensor, handed: Mapping[str, Any], _call: ScatterCall) -> Seen:
        if "merge" not in vars(self):
            return super()._run(ids, handed, _call)  # asked for the form of features when it is made
        with self._twins(ids, _call):
            text = self.model.get_input_embeddings()(ids)
            token = self.model.get_input_embeddings().weight[next(iter(self.ids.values()))].detach()
        masks, before = {name: ids == place for name, place in self.ids.items()}, self.table(ids)
        media = {name: list(_rows(given)) for name, given in handed.items()}
        self.check(masks, media)
        self.token = token
        rows = {name: torch.cat(items) for name, items in media.items()}
        seen = Seen(text=text, merged=self.merge(text.clone(), masks, rows))
        seen.rewritten = int((self.table(ids) != before).any(-1).sum())
        if handed:
            mask = torch.stack([masks[name] for name in masks]).any(0)
            inner = [
                self.layers(text.detach() * 0, masks, {n: _layer(g, i) for n, g in handed.items()})
                for i in range(LAYERS)
            ]
            seen.given = {"visual_pos_masks": mask, "deepstack_visual_embeds": [layer[mask] for layer in inner]}
        return seen

    def _of_dtype(self, call: ScatterCall) -> Outputs:
        kept = self.model
        try:
            self.model = copy.deepcopy(kept).to(getattr(torch, call.dtype))
            return self.answer(call)
        finally:
            self.model = kept


def _rows(given: Any) -> Any:
    return given[0] if isinstance(given, tuple) else given.pooler_output


def _layer(given: Any, layer: int) -> Tensor:
    return given[1][layer] if isinstance(given, tuple) else torch.cat(given.deepstack_features[layer])


@functools.lru_cache(maxsize=1)
def _model() -> Written:
    return Written()


def _with(call: ScatterCall, **changes: Any) -> Outputs:
    """What the family answers with parts of its forward replaced."""
    model = _model()
    kept = {name: getattr(model, name) for name in changes}
    try:
        for name, value in changes.items():
            setattr(model, name, value)
        return model(call)
    finally:
        for name, value in kept.items():
            setattr(model, name, value)


def clean(call: ScatterCall) -> Outputs:
    """The forward that the faults depart from: nothing is wrong with it."""
    return _with(call)


def merged(x: Tensor, masks: Masks, rows: Rows) -> Tensor:
    """Modality after modality."""
    for name, own in rows.items():
        x = put(x, masks[name], own)
    return x


def checked(masks: Masks, media: Mapping[str, list[Tensor]]) -> None:
    """As many of each modality, and each medium within a sample."""
    counted(masks, media)
    for name, items in media.items():
        samples = torch.split(masks[name].nonzero()[:, 0], [len(item) for item in items])
        if any(len(set(own.tolist())) > 1 for own in samples):
            message = f"{name}: a medium lies in two samples"
            raise ValueError(message)


def counted(masks: Masks, media: Mapping[str, list[Tensor]]) -> None:
    """As many features as placeholders of each modality, over the batch."""
    for name, mask in masks.items():
        tokens, features = int(mask.sum()), sum(map(len, media.get(name, [])))
        if tokens != features:
            message = f"{name} features and {name} tokens do not match, tokens: {tokens}, features: {features}"
            raise ValueError(message)


def _unchecked(_masks: Masks, _media: Mapping[str, list[Tensor]]) -> None:
    """Nothing is looked at."""


def _images_first(x: Tensor, masks: Masks, rows: Rows) -> Tensor:
    both = torch.stack([mask for name, mask in masks.items() if name in ("image", "video")]).any(0)
    return put(x, both, torch.cat([rows[name] for name in ("image", "video") if name in rows] or [x[0, :0]]))


@fault(NAME, "placement", link="https://github.com/osaurus-ai/vmlx-swift/pull/404")
def images_before_videos(call: ScatterCall) -> Outputs:
    """One mask over all placeholders takes the features of all images, then those of all videos.

    Effect: a video before an image swaps the two.
    """
    return _with(call, merge=_images_first)


@fault(NAME, "deepstack", link="https://github.com/osaurus-ai/vmlx-swift/pull/404")
def inner_images_before_videos(call: ScatterCall) -> Outputs:
    """The features of inner layers are concatenated, images first, for a mask in which they alternate.

    Effect: fine detail of the video is added to the image, in every layer that adds some.
    """
    return _with(call, layers=_images_first)


@fault(NAME, "text", link="https://github.com/TensorAuto/OpenTau/pull/179")
def text_scaled_again(call: ScatterCall) -> Outputs:
    """All rows are multiplied by the square root of the width before features are put in, although the layer did so.

    Effect: text is many times as large as images.
    """
    return _with(call, merge=lambda x, masks, rows: merged(x * x.shape[-1] ** 0.5, masks, rows))


@fault(NAME, "reaches", link="https://github.com/QwenLM/Qwen-VL/issues/124")
def features_detached(call: ScatterCall) -> Outputs:
    """Features are written as data.

    Effect: tower and projector never learn.
    """
    return _with(call, merge=lambda x, masks, rows: merged(x, masks, {n: r.detach() for n, r in rows.items()}))


@fault(NAME, "surplus", link="https://github.com/huggingface/transformers/pull/33608")
def surplus_dropped(call: ScatterCall) -> Outputs:
    """Only too few features are an error.

    Effect: a truncated prompt moves all later images.
    """

    def check(masks: Masks, media: Mapping[str, list[Tensor]]) -> None:
        enough = {name: sum(map(len, media.get(name, []))) >= int(mask.sum()) for name, mask in masks.items()}
        if not all(enough.values()):
            raise ValueError("too few features")

    return _with(call, check=check)


@fault(NAME, "missing")
def as_many_as_there_are(call: ScatterCall) -> Outputs:
    """Features are put in as far as they go.

    Effect: placeholders stay what they are, and the model answers without its image.
    """
    return _with(call, check=_unchecked)


@fault(NAME, "unfilled")
def counted_where_there_are_media(call: ScatterCall) -> Outputs:
    """Placeholders are looked at only where the forward is given media, as in transformers.

    Effect: a collator that forgets the pixels trains answers without their image.
    """
    return _with(call, check=lambda masks, media: checked(masks, media) if media else None)


@fault(NAME, "compensated")
def counted_over_modalities(call: ScatterCall) -> Outputs:
    """The number of all features is compared with that of all placeholders.

    Effect: one frame too many and one crop too few pass.
    """

    def check(masks: Masks, media: Mapping[str, list[Tensor]]) -> None:
        if sum(int(mask.sum()) for mask in masks.values()) != sum(len(x) for items in media.values() for x in items):
            raise ValueError("features and placeholders differ")

    return _with(call, check=check)


@fault(NAME, "straddles")
def counted_over_the_batch(call: ScatterCall) -> Outputs:
    """Features and placeholders are counted over the batch, as in transformers.

    Effect: two samples that are wrong by one each pass, and rows of one's image stand in the other.
    """
    return _with(call, check=counted)


@fault(NAME, "numbers", link="https://github.com/unslothai/unsloth/issues/3783")
def width_counted_as_features(call: ScatterCall) -> Outputs:
    """The error multiplies the two dimensions of features that are [N, H] by then.

    Effect: "tokens: 575, features 2359296", and the search for the missing feature begins elsewhere.
    """

    def check(masks: Masks, media: Mapping[str, list[Tensor]]) -> None:
        try:
            checked(masks, media)
        except ValueError as error:
            numel = sum(item.numel() for items in media.values() for item in items)
            raise ValueError(f"tokens: {sum(int(m.sum()) for m in masks.values())}, features: {numel}") from error

    return _with(call, check=check)


@fault(NAME, "order", "micro")
def dealt_out_by_place(call: ScatterCall) -> Outputs:
    """Features are put in place by place over the batch, first all first placeholders.

    Effect: samples of a batch swap rows of their images.
    """

    def merge(x: Tensor, masks: Masks, rows: Rows) -> Tensor:
        for name, own in rows.items():
            x = put(x.transpose(0, 1), masks[name].t(), own).transpose(0, 1)
        return x

    return _with(call, merge=merge)


@fault(NAME, "neighbours", "micro")
def centred_over_the_batch(call: ScatterCall) -> Outputs:
    """The mean of all features of the batch is taken away.

    Effect: what an image looks like depends on its batch.
    """
    centred = _centred
    return _with(call, merge=lambda x, masks, rows: merged(x, masks, {n: centred(r) for n, r in rows.items()}))


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(0)


@fault(NAME, "alike", link="https://github.com/huggingface/transformers/issues/38012")
def found_by_embedding(call: ScatterCall) -> Outputs:
    """The first modality's placeholders are looked for among the embeddings, ids or no ids.

    Effect: a new token that was initialised as a copy is taken for an image.
    """

    def merge(x: Tensor, masks: Masks, rows: Rows) -> Tensor:
        first = next(iter(masks))
        return merged(x, {**masks, first: (x == _model().token).all(-1)}, rows)

    return _with(call, merge=merge)


@fault(NAME, "nondeterministic")
def noise_left_on(call: ScatterCall) -> Outputs:
    """Noise for regularisation is added to the embeddings in evaluation too.

    Effect: no two answers agree.
    """
    return _with(call, merge=lambda x, masks, rows: merged(x + 0.1 * torch.rand(()), masks, rows))


@fault(NAME, "leaks")
def seed_in_the_forward(call: ScatterCall) -> Outputs:
    """The global generator is seeded in every forward.

    Effect: every step draws the same dropout masks.
    """
    torch.manual_seed(0)
    return _with(call)


@fault(NAME, "inner_reaches")
def inner_features_detached(call: ScatterCall) -> Outputs:
    """Features of inner layers are detached, so that layers that are computed again do not ask for them twice.

    Effect: the tower is trained by its last layer alone.
    """
    return _with(call, layers=lambda x, masks, rows: merged(x, masks, {n: r.detach() for n, r in rows.items()}))


@fault(NAME, "training")
def detached_in_training(call: ScatterCall) -> Outputs:
    """In training mode features are detached, since the tower is frozen; the projector before them is not.

    Effect: every test in evaluation mode is right, and the projector never learns.
    """

    def merge(x: Tensor, masks: Masks, rows: Rows) -> Tensor:
        return merged(x, masks, {n: r.detach() if call.training else r for n, r in rows.items()})

    return _with(call, merge=merge)


@fault(NAME, "embedded")
def doubled_where_ids_are_given(call: ScatterCall) -> Outputs:
    """Features are doubled, to weigh as much as words, where ids are given; the way of embeddings was forgotten.

    Effect: adapters that embed by themselves see pictures half as large as the model was trained with.
    """

    def merge(x: Tensor, masks: Masks, rows: Rows) -> Tensor:
        return merged(x, masks, {n: r if call.embedded else r * 2 for n, r in rows.items()})

    return _with(call, merge=merge)


@fault(NAME, "narrow")
def scaled_in_half(call: ScatterCall) -> Outputs:
    """Features that are not float32 are brought to the size of the embeddings, as a guard against overflow.

    Effect: the model that is trained in bfloat16 is another than the one that was tested.
    """

    def guarded(rows: Tensor) -> Tensor:
        return rows if rows.dtype == torch.float32 else rows / rows.detach().abs().max().clamp(min=1)

    return _with(call, merge=lambda x, masks, rows: merged(x, masks, {n: guarded(r) for n, r in rows.items()}))


@fault(NAME, "rewrites")
def written_into_the_table(call: ScatterCall) -> Outputs:
    """The last feature of each modality is written into the placeholder's row of the table, for decoding.

    Effect: the row is saved with the model, and whatever reads it next begins with some old image.
    """
    model = _model()
    table = model.model.get_input_embeddings().weight.detach()
    kept = table.clone()

    def merge(x: Tensor, masks: Masks, rows: Rows) -> Tensor:
        for name, own in rows.items():
            table[model.ids[name]] = own[-1].detach().to(table)
        return merged(x, masks, rows)

    try:
        return _with(call, merge=merge)
    finally:
        table.copy_(kept)


FAULTS = gathered(globals())
