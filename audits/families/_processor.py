"""The family's own processor, offline, on synthetic media of exactly the size that a sample asks for."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from assay.audits.families import _media, _release
from assay.audits.families._tokenizer import single_token_words
from assay.audits.families.samples import Audio, Image, Sample, Segment, Text, Video

if TYPE_CHECKING:
    import torch

    from assay.audits.families._recipe import Padding, Recipe


def process(
    recipe: Recipe, samples: Sequence[Sample], *, padding: Padding, seed: int, keys: Sequence[int] = ()
) -> dict[str, Any]:
    """Everything that the processor returns for ``samples``, with each media grid checked against what was asked.

    Words, images and sounds of a sample depend on ``seed`` and its key alone (by default its place in the batch).
    """
    import torch

    for sample in samples:
        _check(recipe, sample)
    more = recipe.call(samples) if recipe.call else {}
    named = list(zip(keys or range(len(samples)), samples, strict=True))
    arguments = {**_media_arguments(recipe, named, seed), **more}
    text = [_prompt(recipe, sample, random.Random(f"{seed} {key}")) for key, sample in named]
    outputs = dict(processor(recipe)(text=text, padding=True, padding_side=padding, return_tensors="pt", **arguments))
    tensors = {name: torch.as_tensor(value) for name, value in outputs.items() if name.startswith("second_per_grid")}
    outputs.update(tensors)
    _compare_grids(samples, outputs)
    return {name: value for name, value in outputs.items() if name != "video_metadata"}


def _check(recipe: Recipe, sample: Sample) -> None:
    for modality in sorted(sample.modalities):
        if not getattr(recipe, modality):
            message = f"sample {sample}: {recipe.model} has no {modality} input"
            raise ValueError(message)
    for segment in sample.segments:
        if isinstance(segment, Image | Video) and (
            segment.height % recipe.merge_size or segment.width % recipe.merge_size
        ):
            message = f"sample {sample}: height and width must be multiples of {recipe.merge_size}, which are merged"
            raise ValueError(message)
        if isinstance(segment, Video) and segment.steps * recipe.step % recipe.temporal_patch_size:
            message = f"sample {sample}: {recipe.name} merges {recipe.temporal_patch_size} temporal steps into one"
            raise ValueError(message)


def _prompt(recipe: Recipe, sample: Sample, draw: random.Random) -> str:
    """The sample as text: one-token words, and one placeholder for each medium, which the processor expands."""
    words = single_token_words(recipe.tokenizer())
    written: Mapping[type[Segment], str] = {Image: recipe.image, Video: recipe.video, Audio: recipe.audio}
    return "".join(
        "".join(draw.choices(words, k=segment.tokens)) if isinstance(segment, Text) else written[type(segment)]
        for segment in sample.segments
    )


def _media_arguments(recipe: Recipe, named: Sequence[tuple[int, Sample]], seed: int) -> dict[str, Any]:
    """``images``, ``videos`` with their metadata, and ``audio``, flat over the batch in reading order."""
    drawn = [
        (part, np.random.default_rng([seed, key, place]))
        for key, sample in named
        for place, part in enumerate(sample.segments)
    ]
    side = recipe.patch_size
    images = [
        _media.image(part.height * side, part.width * side, draw) for part, draw in drawn if isinstance(part, Image)
    ]
    clips = [(part, draw) for part, draw in drawn if isinstance(part, Video)]
    sounds = [(part, draw) for part, draw in drawn if isinstance(part, Audio)]
    arguments: dict[str, Any] = {"images": images} if images else {}
    if clips:
        step = recipe.step
        arguments["videos"] = [
            _media.video(clip.steps * step, clip.height * side, clip.width * side, draw) for clip, draw in clips
        ]
        arguments["video_metadata"] = [_metadata(clip, step, side) for clip, _ in clips]
        arguments["do_sample_frames"] = False
        if not _release.within(">=5.0.0.dev0"):
            arguments["fps"] = [clip.frames_per_second for clip, _ in clips]
    if sounds:
        arguments["audio"] = [_media.sound(round(part.seconds * recipe.sampling_rate), draw) for part, draw in sounds]
    return arguments


def _metadata(clip: Video, step: int, side: int) -> dict[str, Any]:
    frames = clip.steps * step
    return {
        "total_num_frames": frames,
        "fps": clip.frames_per_second,
        "duration": frames / clip.frames_per_second,
        "frames_indices": list(range(frames)),
        "height": clip.height * side,
        "width": clip.width * side,
    }


def processor(recipe: Recipe) -> Any:
    """The processor of a recipe, assembled once in a process."""
    if recipe.name not in _ASSEMBLED:
        _ASSEMBLED[recipe.name] = _assembled(recipe)
    return _ASSEMBLED[recipe.name]


_ASSEMBLED: dict[str, Any] = {}


def _assembled(recipe: Recipe) -> Any:
    import transformers

    parts: dict[str, Any] = {"tokenizer": recipe.tokenizer(), "image_processor": image_processor(recipe)}
    if recipe.video:
        parts["video_processor"] = recipe.frame_processor()
    if recipe.parts:
        parts.update(recipe.parts(recipe))
    return _lenient(getattr(transformers, recipe.processor))(**parts)


def image_processor(recipe: Recipe) -> Any:
    """The family's own image processor, in its PIL form, with resizing off."""
    import transformers

    pil = _release.within(">=5.0.0.dev0") and hasattr(transformers, f"{recipe.image_processor}Pil")
    exported = getattr(transformers, recipe.image_processor + ("Pil" if pil else ""))
    # transformers 5.16 and 5.17 export a stand-in for one PIL class that asks for torchvision; the class does not.
    cls = getattr(import_module(exported.__module__), exported.__name__)
    settings = {
        "do_resize": False,
        "patch_size": recipe.patch_size,
        "merge_size": recipe.merge_size,
        "temporal_patch_size": recipe.temporal_patch_size,
        **(recipe.image_settings or {}),
    }
    return cls(**settings)


def patches_of(recipe: Recipe, pictures: Sequence[_media.Pixels], *, video: bool) -> torch.Tensor:
    """Rows of patches [P,C] that the family's processors make of uint8 pictures (frames, height, width, 3)."""
    import torch
    from PIL.Image import fromarray

    if video:
        rows = recipe.frame_processor()(pictures)["pixel_values_videos"]
    else:
        images = [fromarray(picture[0]) for picture in pictures]
        rows = processor(recipe).image_processor(images=images, return_tensors="pt")["pixel_values"]
    return torch.as_tensor(rows)


def _lenient(cls: type[Any]) -> type[Any]:
    """``cls`` without its check that each part is of the registered class, which imports torchvision."""
    return type(cls.__name__, (cls,), {"check_argument_for_proper_class": lambda _self, _name, part: type(part)})


def _compare_grids(samples: Sequence[Sample], outputs: Mapping[str, Any]) -> None:
    segments = [segment for sample in samples for segment in sample.segments]
    asked = {
        "image_grid_thw": [[1, part.height, part.width] for part in segments if isinstance(part, Image)],
        "video_grid_thw": [[part.steps, part.height, part.width] for part in segments if isinstance(part, Video)],
    }
    for name, grids in asked.items():
        if name in outputs and outputs[name].tolist() != grids:
            message = f"{name}: asked for {grids}, the processor returned {outputs[name].tolist()}"
            raise AssertionError(message)
