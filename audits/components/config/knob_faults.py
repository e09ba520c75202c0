"""Blocks that take a setting and ignore it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.components.config.knob_own import SETTINGS, Block, made
from assay.audits.components.config.knob_run import KnobCall, answer
from assay.audits.components.config.knobs import NAME
from assay.audits.fault import CONSTRUCTED, fault
from assay.audits.terms import Fault, Outputs


def faulty(*caught_by: str, link: str = CONSTRUCTED) -> Callable[[Callable[[], Any]], Fault]:
    """Turn a function that makes something with a dead knob into an entry; its docstring is the entry's."""

    def entry(make: Callable[[], Any]) -> Fault:
        @functools.wraps(make)
        def wrong(call: KnobCall) -> Outputs:
            return answer(make, call)

        return fault(NAME, *caught_by, link=link)(wrong)

    return entry


def _few(build: Callable[..., Any], *names: str) -> dict[str, Any]:
    """The block with some of its settings."""
    return made(build, settings={name: SETTINGS[name] for name in (*names, "theta", "heads")})


def _without(name: str) -> dict[str, Any]:
    """The block, built with the default of a setting whatever was asked."""
    return _few(lambda **given: Block(**{key: value for key, value in given.items() if key != name}), name)


@faulty("dead")
def layer_scale_ignored() -> dict[str, Any]:
    """An initial LayerScale is accepted and no parameter is made of it.

    Effect: deep models are trained without what was to keep them stable.
    """
    return _without("layer_scale")


@faulty("unread")
def layer_scale_never_multiplied() -> dict[str, Any]:
    """LayerScale parameters are made, saved and counted, and no branch is multiplied by them.

    Effect: the parameters keep the values that they began with.
    """

    class Unscaled(Block):
        def scaled(self, x: Tensor) -> Tensor:
            return x

    return _few(Unscaled, "layer_scale")


@faulty("dead")
def dropout_not_passed_on() -> dict[str, Any]:
    """The argument of dropout stops at the outer class.

    Effect: training is without dropout at every rate that was tried.
    """
    return _without("dropout")


@faulty("dead")
def base_read_from_the_default() -> dict[str, Any]:
    """The rotary embedding reads its base from where it was in an earlier release.

    Effect: the default is used; positions turn by other angles than the checkpoint's.
    """
    return _without("theta")


@faulty("dead")
def window_ignored() -> dict[str, Any]:
    """The sliding window is stored and no mask is made of it.

    Effect: every layer sees everything, and the cache is as large as if there were no window.
    """

    class Wide(Block):
        def mask(self, length: int) -> Tensor:
            return torch.ones(length, length, dtype=torch.bool).tril()

    return _few(Wide, "window", "use_window")


@faulty("dead")
def head_never_tied() -> dict[str, Any]:
    """The head was to be the embeddings, and stays a matrix of its own.

    Effect: a checkpoint of tied weights leaves the head random.
    """
    return _without("tied")


@faulty("dead")
def softcap_dropped() -> dict[str, Any]:
    """A faster head computes the scores without their cap.

    Effect: logits grow beyond what the model was trained with.
    """

    class Uncapped(Block):
        def capped(self, scores: Tensor) -> Tensor:
            return scores

    return _few(Uncapped, "softcap")


@faulty("dead")
def epsilon_of_the_default() -> dict[str, Any]:
    """The norm is made with its own default in place of the configuration's epsilon.

    Effect: small activations are scaled otherwise than the checkpoint was trained with.
    """
    return _without("eps")


@faulty("dead")
def initial_spread_ignored() -> dict[str, Any]:
    """Weights are drawn with a spread of 0.02 whatever the configuration says.

    Effect: what was tuned for another width starts elsewhere.
    """
    return _without("init_std")


@faulty("dead")
def other_activation_ignored() -> dict[str, Any]:
    """The feed-forward layer has its activation written into it.

    Effect: a checkpoint that was trained with another one answers nearly right.
    """

    class Always(Block):
        def __init__(self, *, act: str = "gelu", **more: Any) -> None:
            del act
            super().__init__(**more)

    return _few(Always, "act")


@faulty("dead")
def switch_without_wire() -> dict[str, Any]:
    """The switch of the window is read nowhere: the window counts as soon as it is set.

    Effect: what was switched off is on.
    """

    class Switched(Block):
        def __init__(self, *, use_window: bool = False, **more: Any) -> None:
            del use_window
            super().__init__(use_window=True, **more)

    return _few(Switched, "window", "use_window")


@faulty("nondeterministic")
def built_from_what_came_before() -> dict[str, Any]:
    """Which settings count depends on how many were built before.

    Effect: a search over settings compares orders of runs.
    """
    state = {"calls": 0}

    def build(**given: Any) -> nn.Module:
        state["calls"] += 1
        return Block(**given) if state["calls"] < 3 else Block(**{**given, "theta": float(state["calls"])})

    return made(build)


@faulty("alike")
def refused_as_it_stands() -> dict[str, Any]:
    """The usual settings do not fit the batch, which is longer than the table of positions.

    Effect: nothing can be said of any setting.
    """
    ids = torch.zeros(1, 20, dtype=torch.long)
    return {**_few(Block), "batch": (ids,)}


@faulty("leaks")
def building_sets_a_dtype() -> dict[str, Any]:
    """Building changes the default dtype.

    Effect: whatever is made afterwards is in another precision.
    """

    def build(**given: Any) -> nn.Module:
        found = Block(**given)
        torch.set_default_dtype(torch.float64)
        return found.float()

    return made(build)
