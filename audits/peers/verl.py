"""verl: its copies of position rules, its data set and batches for supervised training, its losses and its forwards."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from assay.audits import peer
from assay.audits.components.mrope import stream
from assay.audits.terms import Candidate, Inexpressible
from assay.reference.mrope_rules import PositionRule

HERE = "assay.audits.peers.verl"
BATCHES = "assay.audits.peers._verl_batches"
MODELS = "verl.models.transformers"
FLASH = "its attention calls flash-attn, which needs a GPU"
NEEDY = "its forwards compute no positions and no loss: only its engine can call them"
POSITIONS = (
    ("qwen2-vl", "qwen2_vl", "qwen2_vl_positions", "assay"),
    ("qwen2_5-vl", "qwen2_5_vl", "qwen2_vl_positions", "assay"),
    ("qwen3-vl", "qwen3_vl", "qwen3_vl_positions", "hf-4.57"),
    ("glm4v", "glm4v", "glm4v_positions", "hf-4.57"),
)
"""Candidate, rule, the copy of the rule that verl uses for it, and the form in which that is asked."""

RATE = 2.0
"""Ids of a second, which are written into the copy: those of the published checkpoints of Qwen2.5-VL."""


def _candidates() -> Iterator[Candidate]:
    for name, rule, function, form in POSITIONS:
        only: dict[str, Any] = {"rule": rule}
        only |= {"ids_per_second": RATE} if rule == "qwen2_5_vl" else {}
        yield peer.calls("mrope.positions", name, f"{HERE}:{function}", form=form, scope=only)
    for name in ("qwen2_vl", "glm4v"):
        ref = f"{HERE}:{name}_flash_lengths"
        yield peer.calls("packed_positions.boundaries", f"{name}-flash-lengths", ref, form="hf-flash")
    scope: dict[str, Any] = {"weighted": False, "softcap": None, "z_loss": 0.0, "label_smoothing": 0.0}
    scope |= {"normaliser": None, "reduction": "mean"}
    for name in ("logprobs-v2", "logprobs-naive"):
        ref = f"{HERE}:{name.replace('-', '_')}"
        yield peer.calls("masked_loss.cross_entropy", name, ref, form="torch", scope=scope)
    for name in ("sft-text", "sft-qwen2-5-vl", "sft-qwen3-vl", "sft-unpadded-qwen2-5-vl"):
        yield peer.batches(name, f"{BATCHES}:{name.replace('-', '_')}")
    for operation in ("patch", "masked_scatter.model", "packed_positions.model"):
        yield peer.unrunnable(operation, "forwards", NEEDY)
    for operation in ("mrope.model", "packed_positions.model"):
        yield peer.unrunnable(operation, "attention", FLASH)


PEER = peer.Peer(
    name="verl",
    source="https://github.com/verl-project/verl",
    requirements=("verl==0.9.1", "pillow", "qwen-vl-utils==0.0.14", "triton==3.7.1"),
    candidates=_candidates,
    preload=("transformers", "verl.models.transformers.qwen2_vl", "verl.utils.dataset.multiturn_sft_dataset"),
)

_IDS = {
    "<|image_pad|>": stream.IMAGE, "<|video_pad|>": stream.VIDEO, "<|vision_start|>": stream.START,
    "<|image|>": stream.IMAGE, "<|begin_of_video|>": stream.VIDEO_START, "<|end_of_video|>": stream.VIDEO_END,
}  # fmt: skip


def _processor() -> Any:
    """What verl asks a processor: the size of a merge, and ids."""
    return SimpleNamespace(
        image_processor=SimpleNamespace(merge_size=2),
        tokenizer=SimpleNamespace(convert_tokens_to_ids=_IDS.__getitem__),
        image_token_id=stream.IMAGE, video_token_id=stream.VIDEO, vision_start_token_id=stream.START,
    )  # fmt: skip


def _positions(module: str, *, seconds: bool, frames: bool) -> Any:
    """A ``get_rope_index`` for one sample as one for batches; ``frames``: each frame of a video has a marker."""

    def asked(
        input_ids: Tensor, image_grid_thw: Tensor | None, video_grid_thw: Tensor | None,
        second_per_grid_ts: Tensor | None = None, attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        from importlib import import_module

        function = import_module(f"{MODELS}.{module}").get_rope_index
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if not seconds and not frames:  # GLM writes its videos with the placeholder of images, between two markers
            input_ids = input_ids.where(input_ids != stream.VIDEO, stream.IMAGE)
        rows, image, video = [], 0, 0
        for ids, real in zip(input_ids, mask, strict=True):
            images, videos = _counts(ids[real == 1], video_grid_thw, video, frames=frames)
            more: dict[str, Any] = {}
            if seconds and second_per_grid_ts is not None:
                more["second_per_grid_ts"] = second_per_grid_ts[video : video + videos]
            made = function(
                _processor(), ids, image_grid_thw=_part(image_grid_thw, image, images),
                video_grid_thw=_part(video_grid_thw, video, videos),
                **more, attention_mask=None if attention_mask is None else real,
            )  # fmt: skip
            rows.append(made)
            image, video = image + images, video + videos
        ids = torch.stack(rows, dim=1)
        last = torch.where(mask.bool(), ids, -1).amax(dim=(0, 2))
        return ids, last + 1 - input_ids.shape[1]

    return asked


def _part(grids: Tensor | None, first: int, count: int) -> Tensor | None:
    return None if grids is None or not count else grids[first : first + count].clone()


def _counts(ids: Tensor, grids: Tensor | None, first: int, *, frames: bool) -> tuple[int, int]:
    """Images and videos of one sample, by the markers in front of them."""
    before = ids[:-1]
    images = int(((before == stream.START) & (ids[1:] == stream.IMAGE)).sum())
    videos = int(((before == stream.START) & (ids[1:] == stream.VIDEO)).sum())
    if (ids == stream.VIDEO_START).any():
        inside = (ids == stream.VIDEO_START).cumsum(0) - (ids == stream.VIDEO_END).cumsum(0)
        images = int(((before == stream.START) & (ids[1:] == stream.IMAGE) & (inside[1:] == 0)).sum())
        videos = int((ids == stream.VIDEO_START).sum())
    if frames and videos:
        assert grids is not None
        left, videos = videos, 0
        while left > 0:
            left -= int(grids[first + videos, 0])
            videos += 1
    return images, videos


_qwen2_vl = _positions("qwen2_vl", seconds=True, frames=False)


def qwen2_vl_positions(
    rule: PositionRule, token_types: Tensor, *, attention_mask: Tensor | None = None,
    image_grids: Tensor | None = None, video_grids: Tensor | None = None, seconds_per_grid: Tensor | None = None,
    audio_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The copy for Qwen2-VL and Qwen2.5-VL, which finds images by the marker in front of them."""
    if audio_lengths is not None:
        raise Inexpressible("no audio")
    if rule.video_time == "seconds" and rule.ids_per_second != RATE:
        raise Inexpressible(f"the rate is {RATE:g} ids per second")
    real = torch.ones_like(token_types) if attention_mask is None else attention_mask
    visual = (token_types * real > 0).long()
    first = (visual - visual.roll(1, -1)) > 0
    first[:, 0] = visual[:, 0] > 0
    before = first.roll(-1, -1)
    if bool(first[:, 0].any()) or bool((before & (real == 0)).any()):
        raise Inexpressible("images and videos are found by the marker before them")
    blocks = [grid for grid in (image_grids, video_grids) if grid is not None]
    if int(first.sum()) != sum(map(len, blocks)):
        raise Inexpressible("as many blocks of placeholders as grids")
    ids = torch.full_like(token_types, 100).where(token_types == 0, token_types + stream.IMAGE - 1)
    made, deltas = _qwen2_vl(
        ids.where(~before, stream.START), image_grids, video_grids, second_per_grid_ts=seconds_per_grid,
        attention_mask=attention_mask,
    )  # fmt: skip
    return made, deltas + token_types.shape[1] - real.sum(-1)


qwen3_vl_positions = _positions("qwen3_vl", seconds=False, frames=True)
glm4v_positions = _positions("glm4v", seconds=False, frames=False)


def _flash_lengths(module: str, position_ids: Tensor) -> Any:
    from importlib import import_module

    some = torch.zeros(*position_ids.shape, 1, 1)
    function = import_module(f"{MODELS}.{module}").prepare_fa2_from_position_ids
    *_, ends, longest = function(some, some, some, position_ids)
    return ends, longest


qwen2_vl_flash_lengths = functools.partial(_flash_lengths, "qwen2_vl")
glm4v_flash_lengths = functools.partial(_flash_lengths, "glm4v")


def _scored(name: str, rows: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """The loss of supervised training: minus the sum of the labels' log-probabilities over their number."""
    import verl.utils.torch_functional as functional

    if options.get("reduction", "mean") != "mean" or options.get("label_smoothing"):
        raise Inexpressible("the mean over tokens, without smoothing")
    kept = labels != options.get("ignore_index", -100)
    logprobs = getattr(functional, name)(rows, labels.where(kept, 0))
    mean: Tensor = functional.masked_mean(logprobs, kept)
    return -mean


logprobs_v2 = functools.partial(_scored, "logprobs_from_logits_v2")
logprobs_naive = functools.partial(_scored, "logprobs_from_logits_naive")


def trains_on() -> dict[str, Any]:
    """By option: what makes ids and labels of conversations."""
    from assay.audits.peers import _trained, _verl_batches

    return {"default": _trained.by(_verl_batches.sft_qwen2_5_vl)}
