"""Features of images, videos and sounds put into text embeddings at their placeholders.

A processor writes one placeholder id for each feature that the encoder will return; the model finds them by that id and
puts the features there, in the order in which they stand: row by row of the batch, from left to right. That there are
as many of the one as of the other is all that ties them together, so it is checked both ways and per modality: one too
few or too many moves every feature behind it, in its sample and in those after it.

Source: `get_placeholder_mask` and `masked_scatter` of the models of transformers 5.23; `_deepstack_process` of Qwen3-VL
(https://arxiv.org/abs/2406.04334) for features that are added to hidden states.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from assay.reference.arguments import floating, of_dtype, shaped

__all__ = ["Features", "add_at_placeholders", "placeholder_mask", "scatter_features"]

Features = Tensor | Sequence[Tensor] | None
"""Of one modality: [N, H], or [K, n, H] for K media with n features each, or a list of [n_i, H]; None for none."""


def placeholder_mask(input_ids: Tensor, placeholder: int) -> Tensor:
    """Where a placeholder stands: bool [B, S].

    Known by its id and by nothing else: an embedding that is equal to the placeholder's may belong to another token.

    Args:
        input_ids: int64 [B, S].
        placeholder: the id; negative ones, which no tokenizer makes, are ids like any other.
    """
    _ids(input_ids)
    if isinstance(placeholder, bool) or not isinstance(placeholder, int):
        raise TypeError(f"placeholder: expected an int, got {type(placeholder).__name__}")
    return input_ids == placeholder


def scatter_features(
    input_ids: Tensor, embeddings: Tensor, features: Mapping[str, Features], placeholders: Mapping[str, int],
    *, cast: bool = False,
) -> Tensor:  # fmt: skip
    """The embeddings [B, S, H] with each placeholder's replaced by its feature; a new tensor.

    Feature i of a modality goes to its i-th placeholder. All other rows are those of `embeddings`, bit for bit. The
    gradient of the result reaches the features, and the embeddings at all places but the placeholders; what stood
    there is not read, whatever it is.

    Args:
        input_ids: int64 [B, S].
        embeddings: [B, S, H], a floating dtype; differentiable.
        features: those of each modality, by any name that `placeholders` has; differentiable. A modality that is left
            out has none. An item of a list or of [K, n, H] is one medium (an image, a crop, a video).
        placeholders: the id of each modality's placeholder, no two alike.
        cast: round features of another floating dtype to that of the embeddings. Without it they are an error: a
            vision tower in float32 beside a language model in bfloat16 is a decision, not a detail.

    Raises:
        TypeError, ValueError: a wrong dtype, shape or device.
        ValueError: more or fewer features than placeholders of a modality; a medium whose features would come to lie
            in two samples, which has the right count in sum and the wrong one in each.
    """
    return _placed("embeddings", Tensor.index_put, input_ids, embeddings, features, placeholders, cast=cast)


def add_at_placeholders(
    input_ids: Tensor, hidden: Tensor, features: Mapping[str, Features], placeholders: Mapping[str, int],
    *, cast: bool = False,
) -> Tensor:  # fmt: skip
    """Hidden states [B, S, H] with each placeholder's feature added (deepstack); a new tensor.

    Features that an inner layer of the vision encoder gave are added to the rows of the same placeholders after one of
    the first layers of the language model: one call for each such layer. All other rows are unchanged, bit for bit,
    and the gradient of the result reaches every row of `hidden`. Arguments and errors as of :func:`scatter_features`.
    """
    return _placed("hidden", _added, input_ids, hidden, features, placeholders, cast=cast)


Put = Callable[[Tensor, tuple[Tensor, ...], Tensor], Tensor]


def _added(x: Tensor, places: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    return x.index_put(places, rows, accumulate=True)


def _placed(
    name: str, put: Put, input_ids: Tensor, x: Tensor, features: Mapping[str, Features],
    placeholders: Mapping[str, int], *, cast: bool,
) -> Tensor:  # fmt: skip
    _ids(input_ids)
    if floating(name, x).ndim != 3:
        raise ValueError(f"{name}: expected the shape [B, S, H], got {list(x.shape)}")
    shaped("input_ids", input_ids, x.shape[:2], x)
    _distinct(placeholders)
    if unknown := sorted(set(features) - set(placeholders)):
        raise ValueError(f"features: expected those of {sorted(placeholders)}, got {unknown[0]!r}, without an id")
    out = x.clone()
    for modality, placeholder in placeholders.items():
        mask = placeholder_mask(input_ids, placeholder)
        rows, items = _rows(modality, features.get(modality), x, cast=cast)
        _counted(modality, int(mask.sum()), len(rows))
        places = mask.nonzero(as_tuple=True)  # row by row, from left to right
        _within_samples(modality, items, places[0])
        out = put(out, places, rows)
    return out


def _ids(input_ids: object) -> None:
    ids = of_dtype("input_ids", input_ids, torch.int64)
    if ids.ndim != 2:
        raise ValueError(f"input_ids: expected the shape [B, S], got {list(ids.shape)}")


def _distinct(placeholders: Mapping[str, int]) -> None:
    ids = list(placeholders.values())
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        names = [name for name, i in placeholders.items() if i == twice[0]]
        raise ValueError(f"placeholders: expected an id of its own for each modality, got {twice[0]} for {names}")


def _rows(modality: str, features: Features, x: Tensor, *, cast: bool) -> tuple[Tensor, list[int]]:
    """The features as [N, H], and how many of them each medium has; no sizes where that is not said."""
    name = f"features[{modality!r}]"
    if features is None:
        return x.new_zeros((0, x.shape[-1])), []
    if isinstance(features, Tensor) and features.ndim == 2:
        return _like(name, features, x, cast=cast), []
    if isinstance(features, Tensor) and features.ndim != 3:
        raise ValueError(f"{name}: expected the shape [N, H] or [K, n, H], got {list(features.shape)}")
    media = [_like(f"{name}[{i}]", item, x, cast=cast) for i, item in enumerate(features)]
    return torch.cat([x.new_zeros((0, x.shape[-1])), *media]), [len(item) for item in media]


def _like(name: str, rows: object, x: Tensor, *, cast: bool) -> Tensor:
    """Rows [n, H] of the dtype and on the device of `x`."""
    found = floating(name, rows)
    if found.ndim != 2:
        raise ValueError(f"{name}: expected the shape [n, H], got {list(found.shape)}")
    shaped(name, found, (len(found), x.shape[-1]), x)
    if found.dtype != x.dtype and not cast:
        raise TypeError(f"{name}: expected {x.dtype} like the embeddings, or cast=True, got {found.dtype}")
    return found.to(x.dtype)


def _counted(modality: str, tokens: int, features: int) -> None:
    if tokens != features:
        raise ValueError(f"features[{modality!r}]: expected {tokens}, one for each placeholder, got {features}")


def _within_samples(modality: str, items: list[int], samples: Tensor) -> None:
    """ValueError for a medium whose placeholders lie in two samples; `samples` [N] is that of each feature."""
    for i, own in enumerate(torch.split(samples, items) if items else ()):
        first, last = (int(own[0]), int(own[-1])) if len(own) else (0, 0)
        if first != last:
            raise ValueError(
                f"features[{modality!r}][{i}]: expected its {len(own)} placeholders in one sample, they are in "
                f"samples {first} to {last}: a sample has more or fewer than its media have features"
            )
