"""Wrong position ids: the order of a video's frames, and what a second is worth."""

from __future__ import annotations

import torch
from torch import Tensor

from assay.audits.components.mrope.position_faults import but, frame_times, numbered
from assay.audits.components.mrope.positions import NAME, Inputs
from assay.audits.fault import fault, gathered
from assay.audits.terms import Outputs


@fault(NAME, "frame_order", "duration", "parity", link="https://github.com/huggingface/transformers/pull/45400")
def all_frames_at_one_time(inputs: Inputs) -> Outputs:
    """The interval multiplies the start of the video where it was to multiply the index of the frame.

    Effect: a video is a set of frames without order; a test whose interval rounds to zero cannot see it.
    """
    return numbered(inputs, times=lambda given, video: torch.zeros_like(frame_times(given, video)))


@fault(NAME, "frame_order", "parity")
def frames_numbered_backwards(inputs: Inputs) -> Outputs:
    """The newest frame gets the first time.

    Effect: actions are learnt as their reverse.
    """
    return numbered(inputs, times=lambda given, video: frame_times(given, video).flip(0))


@fault(NAME, "interval", "duration", "parity", link="https://github.com/sgl-project/sglang/pull/3682")
def seconds_ignored(inputs: Inputs) -> Outputs:
    """Frames are counted 0, 1, 2, ... although the family's rule counts seconds.

    Effect: a served model sees other times than it was trained with.
    """
    return numbered(inputs, times=lambda given, video: torch.arange(int(given.video_grids[video, 0])))


@fault(NAME, "interval", "duration", "parity", link="https://github.com/huggingface/transformers/pull/41153")
def one_second_a_frame_when_generating(inputs: Inputs) -> Outputs:
    """The seconds per grid are not handed on to generation, so the default of one second takes their place.

    Effect: training knows the true times, generation does not: answers about moments are off by a factor.
    """
    return but(inputs, seconds_per_grid=torch.ones_like(inputs.seconds_per_grid))


@fault(NAME, "default_interval")
def no_seconds_are_zero_seconds(inputs: Inputs) -> Outputs:
    """Where the seconds per grid are missing, zeros take their place.

    Effect: as soon as a collator drops the argument, all frames of all videos stand at one time.
    """
    seconds = inputs.seconds_per_grid
    return but(inputs, seconds_per_grid=0 * seconds if "seconds_per_grid" in inputs.absent else seconds)


@fault(NAME, "interval", "duration", "parity", link="https://github.com/EvolvingLMMs-Lab/lmms-eval/issues/1393")
def default_frame_rate(inputs: Inputs) -> Outputs:
    """The sampled frame rate arrives under a name that the processor does not read, so its default of 24 is used.

    Effect: an evaluation gives every video a twelfth of its duration.
    """
    return but(inputs, seconds_per_grid=torch.full_like(inputs.seconds_per_grid, 2 / 24))


@fault(NAME, "interval", "duration", "parity", link="https://github.com/QwenLM/Qwen3-VL")
def configured_frame_rate(inputs: Inputs) -> Outputs:
    """A collator divides by the configured frame rate, and ignores the rates that the processor reports.

    Effect: limits on the number of frames change the true rate of short and of long videos, which then have wrong
    times in training.
    """
    return but(inputs, seconds_per_grid=torch.full_like(inputs.seconds_per_grid, 2 / 4))


@fault(NAME, "duration", "parity", link="https://github.com/QwenLM/Qwen3-VL/issues/893")
def requested_frame_rate_of_slow_videos(inputs: Inputs) -> Outputs:
    """Where fewer frames were sampled than asked for, the rate that was asked for still makes the times.

    Effect: long videos seem as short as their number of frames.
    """
    return but(inputs, seconds_per_grid=inputs.seconds_per_grid.clamp(max=1.0))


@fault(NAME, "duration", "parity")
def seconds_cut_to_whole_numbers(inputs: Inputs) -> Outputs:
    """The seconds per grid are cut to an integer before they are multiplied.

    Effect: right at one frame a second; above, all frames fall together.
    """
    return but(inputs, seconds_per_grid=inputs.seconds_per_grid.trunc())


@fault(NAME, "duration", "parity")
def times_rounded_up(inputs: Inputs) -> Outputs:
    """Times are rounded to the nearest id where the family cuts them.

    Effect: half of all frames are one id late against the pretraining.
    """

    def times(given: Inputs, video: int) -> Tensor:
        step = given.seconds_per_grid[video] * given.ids_per_second
        return (torch.arange(int(given.video_grids[video, 0])) * step).round().long()

    return numbered(inputs, times=times)


@fault(NAME, "neighbours", "duration", "order", "parity")
def interval_of_the_first_video(inputs: Inputs) -> Outputs:
    """The first video's seconds per grid serve for all.

    Effect: right for one video a batch; the others run too fast or too slowly.
    """
    return but(inputs, seconds_per_grid=inputs.seconds_per_grid[:1].expand_as(inputs.seconds_per_grid))


FAULTS = gathered(vars())
