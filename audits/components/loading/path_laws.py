"""The laws of two loading paths: what they give is the same, but for what is declared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from assay.audits.components.loading.paths import NAME, Case
from assay.audits.laws.limits import difference, excess, floor, relative
from assay.audits.laws.trial import Trial
from assay.audits.patch_runs import from_bytes
from assay.audits.terms import Evidence, Inexpressible, Law, Operation


def tree(trial: Trial) -> Iterator[Evidence]:
    """Both paths have the same parameters and buffers, by name.

    Why: a module that one path has and the other has not was trained and is not used, or is used and was never
    trained. Names of wrappers and of compiled, sharded or checkpointed modules are set aside; adapters that the
    model can merge are merged. A head that only training needs is named in ``declared``.

    Example: training wraps the model with a detection head, inference loads the plain model, and the detections that
    were trained for are never made.
    """
    yield from _told(trial, "tree")


def shapes(trial: Trial) -> Iterator[Evidence]:
    """What has the same name in both paths has the same shape.

    Why: a loader that is told to ignore mismatched sizes leaves such a tensor newly initialised and goes on.

    Example: embeddings that were resized for added tokens in the training script only.
    """
    yield from _told(trial, "shapes")


def dtypes(trial: Trial) -> Iterator[Evidence]:
    """What has the same name in both paths has the same dtype.

    Why: weights that were trained in one precision and are used in another give other scores; where that is meant,
    ``declared`` says ``dtype``, and values are compared in the narrower one.

    Example: an inference script that casts the whole model, with the frequencies of its rotary embedding.
    """
    yield from _told(trial, "dtypes")


def values(trial: Trial) -> Iterator[Evidence]:
    """Parameters and buffers of both paths are equal, bit for bit; merged adapters up to the rounding of their sums.

    Why: weights that a checkpoint lacks are initialised anew, adapters that are not loaded leave the base model as it
    is, and neither stops anything. Buffers are not in most checkpoints: each path computes its own.

    Example: ``load_state_dict(strict=False)`` after a key was renamed; ``inv_freq`` that went through bfloat16.
    """
    yield from _told(trial, "values")


def tied(trial: Trial) -> Iterator[Evidence]:
    """Parameters that are one tensor in one path are one tensor in the other.

    Why: an output head that was tied to the embeddings is not in the checkpoint; a path that unties it has another
    head as soon as either is trained, and more to store.

    Example: ``tie_word_embeddings`` set to false in the inference script, and the head copied by hand.
    """
    yield from _told(trial, "tied")


def config(trial: Trial) -> Iterator[Evidence]:
    """The fields of the configuration that change what is computed are equal.

    Why: a field may change nothing on a short batch and much on a long one: the base and the scaling of the rotary
    embedding, a sliding window. Left aside is what acts in training or generation only, and what names or describes.

    Example: a rope scaling that is set in the training script and lost in the saved configuration.
    """
    yield from _told(trial, "config")


def tokens(trial: Trial) -> Iterator[Evidence]:
    """Vocabulary, added and special tokens and settings of the tokenizer are equal, but for the side of padding.

    Why: an id that means another token shifts everything after it; a padding token that is the end of the text in one
    script changes what is masked. The side of padding does not change what a model is given for a token, if positions
    follow the mask.

    Example: an inference script that loads the tokenizer of the base model, without the tokens that training added.
    """
    yield from _told(trial, "tokens")


def encodes(trial: Trial) -> Iterator[Evidence]:
    """Both tokenizers make the same ids of the same text, and the same text of the same ids.

    Why: settings may agree while what is done does not: another normaliser, another merge table, a token for the
    beginning of the text that one of them puts in.

    Example: a tokenizer that was saved with its template of special tokens, and one that was not.
    """
    yield from _told(trial, "encodes")


def template(trial: Trial) -> Iterator[Evidence]:
    """Both paths render a conversation alike: prompts, answers, system prompts, pictures, tools.

    Why: a model answers as it was trained only where the prompt is written as it was in training. Templates that are
    written otherwise and render alike are alike.

    Example: a chat template that was set in the training script and not saved; a template that drops earlier thoughts.
    """
    yield from _told(trial, "template")


def pictures(trial: Trial) -> Iterator[Evidence]:
    """Image, video and audio processors have the same settings, and make the same of pictures of many sizes.

    Why: with other limits of pixels a picture has another number of tokens, and everything in it another scale; with
    other means and deviations other colours. Nothing fails.

    Example: ``max_pixels`` lowered in the training script to save memory, and left as released in inference.
    """
    yield from _told(trial, "pictures")


def scores(trial: Trial) -> Iterator[Evidence]:
    """Both models give the same scores to the same batch, up to rounding.

    Why: this is what the rest is for. Code that is the same by name may compute something else: a wrapper that scales,
    an attention that was patched in one script.

    Example: a training wrapper that adds the visual features twice, and an inference script that has no wrapper.
    """
    out = trial.outcome.values
    here, there = out["training"], out["inference"]
    if here.shape != there.shape:
        yield Evidence(where="logits", measured=f"shape {tuple(there.shape)}", limit=f"shape {tuple(here.shape)}",
                       message="the inference path's scores have another shape than the training path's")  # fmt: skip
        return
    mask = out.get("mask")
    if mask is not None and mask.shape == here.shape[:2]:
        here, there = here[mask.bool()], there[mask.bool()]
    reach = here.abs().amax() if here.numel() else here.new_zeros(())
    error, allowed = relative(difference(there, here), reach), floor([here, here], reach, torch.float32)
    found = excess("logits", error, allowed, list, "the scores of the two paths differ")
    if found:
        yield found


def repeatable(trial: Trial) -> Iterator[Evidence]:
    """A path that loads a second time, with the generators in another state, gives the same parameters and buffers.

    Why: what is drawn anew at each loading was in no checkpoint. Two scripts that set the same seed hide it from each
    other. A head that starts from nothing in training is named in ``declared``.

    Example: a projector whose weights are missing from the checkpoint, in both scripts.
    """
    yield from _rows(_record(trial, again=True), "again")


def _told(trial: Trial, kind: str) -> Iterator[Evidence]:
    yield from _rows(_record(trial), kind)


def _record(trial: Trial, **changes: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = from_bytes(trial.varied(scores=False, **changes)["record"])
    return found


_ABSENT = {
    "dtypes": "another dtype is declared",
    "config": "a model without a configuration",
    "template": "no path has a chat template",
    "pictures": "no path has a processor of images, videos or sounds",
}


def _rows(record: Mapping[str, Any], kind: str) -> Iterator[Evidence]:
    """The first difference stands for all of its kind."""
    found = record[kind]
    if found is None:
        raise Inexpressible(_ABSENT.get(kind, "a path without a tokenizer"))
    if found["rows"]:
        where, here, there, text = found["rows"][0]
        more = f" ({found['count']} such differences)" if found["count"] > 1 else ""
        measured, limit = _brief(there), _brief(here)
        yield Evidence(where=where[:200], measured=f"inference: {measured}", limit=f"training: {limit}",
                       message=text + more)  # fmt: skip


def _brief(value: Any) -> str:
    text = str(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _once(_operation: Operation, params: Case) -> str | None:
    return None if params.batch == "text" else "what was loaded is compared once, whatever the batch"


LAWS = (
    *(
        Law.of((NAME,), law, _once)
        for law in (tree, shapes, dtypes, values, tied, config, tokens, encodes, template, pictures, repeatable)
    ),
    Law.of((NAME,), scores),
)
