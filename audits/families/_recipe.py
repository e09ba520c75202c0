"""What a family file says about its family, and the tiny model and the batch that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from assay.audits.families import _release
from assay.audits.families._video_processor import CLIP, FrameProcessor, Scaling
from assay.audits.families.samples import Sample, parse
from assay.audits.families.sites import Sites
from assay.audits.terms import Family

if TYPE_CHECKING:
    import torch

TokenId = Callable[[str], int]
Padding = Literal["right", "left"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The differences between families, as data.

    ``model``, ``processor`` and ``image_processor`` are class names that transformers exports. ``config`` makes the
    tiny configuration from the vocabulary size and a function from special token to id. ``image``, ``video`` and
    ``audio`` are what a prompt writes for one of them. ``parts`` makes further arguments of the processor,
    ``call`` further keyword arguments of its call, ``drop`` names outputs that the model does not take.
    ``video_processor`` names the class that :class:`FrameProcessor` stands in for, ``video_scaling`` and
    ``channels_last`` are what it does to pixels. ``frames_per_step`` is how many frames make one step of
    ``video_grid_thw``, where not ``temporal_patch_size``.
    """

    name: str
    model: str
    config: Callable[[int, TokenId], Any]
    processor: str
    image_processor: str
    special: tuple[str, ...]
    image: str
    patch_size: int
    video: str = ""
    audio: str = ""
    merge_size: int = 2
    temporal_patch_size: int = 2
    frames_per_step: int = 0
    video_processor: str = ""
    video_scaling: Scaling = CLIP
    channels_last: bool = False
    sampling_rate: int = 16_000
    attributes: tuple[tuple[str, str], ...] = ()
    image_settings: Mapping[str, Any] | None = None
    parts: Callable[[Recipe], Mapping[str, Any]] | None = None
    call: Callable[[Sequence[Sample]], Mapping[str, Any]] | None = None
    drop: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """Frames per temporal step of a video grid."""
        return self.frames_per_step or self.temporal_patch_size

    def frame_processor(self) -> FrameProcessor:
        """What stands in for the family's video processor."""
        return FrameProcessor(
            patch_size=self.patch_size,
            merge_size=self.merge_size,
            temporal_patch_size=self.temporal_patch_size,
            frames_per_step=self.step,
            scaling=self.video_scaling,
            channels_last=self.channels_last,
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """What a prompt of the family can hold besides text."""
        return tuple(name for name in ("image", "video", "audio") if getattr(self, name))

    def family(self, *, sites: Sites | None = None, **more: Any) -> Family:
        """The :class:`Family` of this recipe; ``more`` are further fields of it (``rule``, ``releases``, ...)."""
        return Family(
            name=self.name,
            modalities=self.modalities,
            build=partial(build, self),
            batch=partial(batch, self),
            sites=sites or Sites(),
            **{"model_type": self.name, "rule": self.name, **more},
        )

    def tokenizer(self) -> Any:
        """The family's tokenizer, the same object for every call in a process."""
        from assay.audits.families._tokenizer import tokenizer

        return tokenizer(self.special, self.attributes)


def build(recipe: Recipe, seed: int = 0) -> Any:
    """A tiny float32 model in eval mode with weights drawn from ``seed``. Global random state is left as it was."""
    import torch
    import transformers

    from assay.audits.families._weights import randomise

    tokenizer = recipe.tokenizer()
    vocabulary = -(-len(tokenizer) // 64) * 64
    config = recipe.config(vocabulary, tokenizer.convert_tokens_to_ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, recipe.model)(config)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return randomise(model, seed)


def batch(
    recipe: Recipe,
    model: Any,
    samples: Sequence[str | Sample],
    *,
    padding: Padding = "right",
    seed: int = 0,
    keys: Sequence[int] = (),
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Keyword arguments of ``model.forward`` for ``samples``, made by the family's own processor; no labels.

    Floating-point features get ``dtype``, by default the model's; everything lies on the model's device. Raises
    ``ValueError`` for a modality the family lacks, or a grid that its patches cannot make.
    """
    import torch

    from assay.audits.families._processor import process

    outputs = process(recipe, [parse(sample) for sample in samples], padding=padding, seed=seed, keys=keys)
    dtype = dtype or next(model.parameters()).dtype
    kept = {name: value for name, value in outputs.items() if name not in recipe.drop}
    for name, value in kept.items():
        if isinstance(value, torch.Tensor):
            kept[name] = value.to(model.device, dtype if value.is_floating_point() else value.dtype)
    return kept


def rope(theta: float, sections: Sequence[int], **more: Any) -> dict[str, Any]:
    """Rotary settings of a text configuration, in the form of the installed release (``rope_parameters`` since 5.0)."""
    settings = {"rope_type": "default", "mrope_section": list(sections), **more}
    if _release.within(">=5.0.0.dev0"):
        return {"rope_parameters": {"rope_theta": theta, **settings}}
    partial_factor = settings.pop("partial_rotary_factor", None)
    fields = {"rope_theta": theta, "rope_scaling": settings}
    return fields if partial_factor is None else {**fields, "partial_rotary_factor": partial_factor}
