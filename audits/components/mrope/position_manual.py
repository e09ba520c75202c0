"""What somebody who writes a candidate of ``mrope.positions`` needs to know: rules, token ids, arguments, answers."""

from __future__ import annotations

from collections.abc import Mapping

from assay.audits.components.mrope import stream
from assay.reference.mrope_rules import RULES, PositionRule

ARGUMENTS = (
    "input_ids, mm_token_type_ids (token_types), attention_mask  int64 [B,S]; the mask is 1 at tokens, 0 at padding",
    "image_grid_thw, video_grid_thw (image_grids, video_grids)  int64 [N,3], (frames, rows, columns), before merging",
    "second_per_grid_ts (seconds_per_grid)  float32 [M], seconds between frames, by rules that count them; None: one",
    "audio_lengths  int64 [K], tokens of each clip; the form assay alone has it",
    "no attention_mask is one of ones; grids of what is not there are left out, None, or have no rows",
)
ANSWERS = (
    "ids  int64 [3,B,S]: time, row, column; what stands at padding is not looked at",
    "deltas  [B] or [B,1]: the id of the next token less the length of its sample, with padding (hf-4.57) or without",
    "An error where grids and tokens do not fit.",
)
TYPES = (
    "0 text and markers, 1 image, 2 video, 3 audio; a frame between GLM's video markers is video too",
    "hf-5.3 passes them as mm_token_type_ids, assay as token_types; hf-4.57 does not: they follow from input_ids",
)


def sections() -> Mapping[str, tuple[str, ...]]:
    """Further parts of the operation's manual page, each a title with its lines."""
    rules: dict[str, list[str]] = {}
    for name, rule in RULES.items():
        if rule.kind in {"blocks", "sequence"}:
            rules.setdefault(_told(rule), []).append(name)
    return {
        "Arguments": ARGUMENTS,
        "Answer": ANSWERS,
        "Token types": TYPES,
        "Token ids": tuple(f"{ids:14}  {what}" for ids, what in _tokens()),
        'Rules (fixed by --family NAME, or by --case \'{"rule":"NAME"}\')': tuple(
            f"{', '.join(names)}: {told}" for told, names in rules.items()
        ),
    }


def _tokens() -> tuple[tuple[str, str], ...]:
    return (
        (f"{stream.FIRST_TEXT} to {stream.LAST_TEXT - 1}", "text, and the timestamps between frames"),
        (str(stream.PAD), "padding"),
        (f"{stream.START}, {stream.END}", "before and after an image, a video, and a frame that stands by itself"),
        (str(stream.IMAGE), "a patch of an image"),
        (str(stream.VIDEO), "a patch of a video"),
        (str(stream.AUDIO), f"1/{stream.TOKENS_PER_SECOND_OF_AUDIO} s of audio"),
        (f"{stream.AUDIO_START}, {stream.AUDIO_END}", "before and after audio"),
        (
            f"{stream.VIDEO_START}, {stream.VIDEO_END}",
            f"before and after a video by the rules {', '.join(sorted(stream.MARKED_VIDEOS))}",
        ),
    )


def _told(rule: PositionRule) -> str:
    if rule.kind == "sequence":
        axes = f"{rule.axes} axes: index, column, row, image; images only"
        return f"merge {rule.spatial_merge}, {axes}; a row ends with one more token, an image has one before and after"
    audio = "; audio counts like text" if rule.audio else ""
    return f"merge {rule.spatial_merge}, {_times(rule)}{audio}"


def _times(rule: PositionRule) -> str:
    rounded = "not rounded, so ids are float64" if rule.fractional else "cut to whole ids"
    times = {
        "index": "a frame is one id later than the one before",
        "seconds": f"frames by their seconds, {rule.ids_per_second:g} ids a second, {rounded}",
        "pooled": f"{rule.temporal_merge} frames become one, which is one id later than the one before",
        "frames": "each frame a block of its own, after two tokens of text and a marker",
    }
    return times[rule.video_time]
