"""Right configurations that are written otherwise than ours: none is accused of anything."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from assay.audits import registry
from assay.audits.components.config.knob_families import implementation
from assay.audits.components.config.knob_own import Block, made
from assay.audits.components.config.knob_run import KnobCall, checked
from assay.audits.components.config.switches import holds, state
from assay.audits.components.config.task_own import SAMPLES, SWITCHES, config
from assay.audits.patch_runs import from_bytes
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Report, Verdict
from assay.audits.usage import BadUsage


def _report(operation: str, make: Callable[[], Any]) -> Report:
    target = {"kind": "import", "ref": f"{__name__}:{make.__name__}", "operation": operation}
    candidate = Candidate(operation=operation, name=make.__name__, form="make", target=target, trusted=True)
    return audit(registry.operation(operation), candidate, Options())


@dataclass
class Tasks:
    detection_enabled: bool = True
    segmentation_enabled: bool = False
    caption: dict[str, float] = field(default_factory=lambda: {"weight": 0.3})


@dataclass
class Whole:
    tasks: Tasks = field(default_factory=Tasks)


def dataclasses_within() -> Any:
    return {"config": Whole(), "samples": SAMPLES, "switches": SWITCHES}


def flat_names() -> Any:
    given = argparse.Namespace(detect=True, disable_masks=True)
    return {"config": given, "samples": list(SAMPLES), "switches": {"detect": "objects", "!disable_masks": "masks"}}


def keys_with_dots() -> Any:
    return {"config": {"loss.boxes": 2}, "samples": list(SAMPLES), "switches": {"loss.boxes": "objects.box"}}


def a_choice_of_none() -> Any:
    return {"config": config(segmentation_enabled="none", detection_enabled="boxes"), "samples": list(SAMPLES),
            "switches": SWITCHES}  # fmt: skip


def present_and_empty() -> Any:
    columns = {"box": [], "label": []}
    empty = [*("[]", "", None, float("nan"), [], {}, columns), np.zeros((0, 4)), torch.zeros(0, 4), [None]]
    samples = [{"caption": "a", "objects": [1], "masks": value} for value in empty]
    return {"config": config(), "samples": samples, "switches": SWITCHES}


def rare_content() -> Any:
    samples = [{**one, "objects": []} for one in SAMPLES * 50] + [SAMPLES[0]]
    return {"config": config(), "samples": {"train": samples, "eval": list(SAMPLES)}, "switches": SWITCHES}


def drawn_from_a_stream() -> Any:
    return {"config": config(), "samples": iter(SAMPLES), "switches": SWITCHES}


def read_by_functions() -> Any:
    def masks(sample: Any) -> Any:
        return [item for item in sample["objects"] if "mask" in item]

    return {"config": config(), "samples": list(SAMPLES), "switches": {"tasks.segmentation_enabled": masks}}


def boxes_of_zeros() -> Any:
    samples = [{"caption": "a", "objects": [[0, 0, 0, 0]], "masks": 0}]
    return {"config": config(), "samples": samples, "switches": SWITCHES}


TASKS = (
    dataclasses_within, flat_names, keys_with_dots, a_choice_of_none, present_and_empty, rare_content,
    drawn_from_a_stream, read_by_functions, boxes_of_zeros,
)  # fmt: skip


@pytest.mark.parametrize("make", TASKS, ids=lambda make: make.__name__)
def test_tasks(make: Callable[[], Any]) -> None:
    report = _report("config.tasks", make)
    assert report.findings == ()
    assert report.verdict == Verdict.PASS


def test_what_counts_as_something() -> None:
    assert not any(map(holds, (None, "", " [] ", "null", 0, False, [], (), {}, {"a": []}, float("nan"))))
    assert all(map(holds, ("0.5 0.5", 1, True, [0], {"a": [0.0]}, [[], [1]], object())))
    assert not any(map(holds, ('{"bbox": [], "label": []}', "[ ]", "[[]]", b"{}")))
    assert all(map(holds, ('{"bbox": [[1, 2, 3, 4]]}', "[0]", "[a note]")))
    assert not any(map(holds, (np.int64(0), np.bool_(False), torch.tensor(0), torch.zeros(()))))
    assert all(map(holds, (np.int64(2), np.bool_(True), torch.tensor(1))))
    assert not any(map(state, (False, 0, 0.0, None, "off", "None", "null", {"enabled": False, "weight": 1})))
    assert all(map(state, (True, 1, "boxes", 0.1, {"enabled": True})))


def functions_of_settings() -> Any:
    def build(scale: float, shift: float) -> Callable[[Tensor], Tensor]:
        return lambda x: scale * x + shift

    return {"build": build, "settings": {"scale": (1.0, 2.0), "shift": [0.0, 1.0]}, "batch": torch.arange(3.0)}


def acts_in_training_alone() -> Any:
    class Noisy(nn.Module):
        def __init__(self, rate: float, smoothing: float) -> None:
            super().__init__()
            self.layer, self.rate, self.smoothing = nn.Linear(4, 3), rate, smoothing

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            out = self.layer(nn.functional.dropout(x, self.rate, self.training))
            smoothing = self.smoothing if self.training else 0.0
            target = torch.zeros(len(x), dtype=torch.long)
            return {"loss": nn.functional.cross_entropy(out, target, label_smoothing=smoothing)}

    return {"build": Noisy, "settings": {"rate": (0.0, 0.5), "smoothing": (0.0, 0.1)}, "batch": {"x": torch.ones(5, 4)}}


def acts_in_the_gradient_alone() -> Any:
    class Reversed(nn.Module):
        def __init__(self, detach: bool, freeze: bool) -> None:
            super().__init__()
            self.one, self.two, self.detach = nn.Linear(4, 4), nn.Linear(4, 4), detach
            self.one.bias.requires_grad_(not freeze)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.one(x)
            return self.two(hidden.detach() if self.detach else hidden)

    settings = {"detach": (False, True), "freeze": (False, True)}
    return {"build": Reversed, "settings": settings, "batch": (torch.ones(2, 4),)}


def gates_that_start_at_zero() -> Any:
    class Gated(nn.Module):
        def __init__(self, gated: bool, places: int) -> None:
            super().__init__()
            self.layer, self.table = nn.Linear(4, 4), nn.Embedding(places, 4)
            self.gate = nn.Parameter(torch.zeros(1)) if gated else None

        def forward(self, x: Tensor) -> Tensor:
            branch = self.layer(x) + self.table(torch.arange(len(x)))
            return x + (branch if self.gate is None else self.gate * branch)

    return {"build": Gated, "settings": {"gated": (False, True), "places": (8, 9)}, "batch": (torch.ones(2, 4),)}


def several_at_once() -> Any:
    """Acts under two others, which is declared."""

    def build(a: bool, b: bool, c: int) -> Callable[[Tensor], Tensor]:
        return lambda x: x * (1 + a) + b + (c if a and b else 0)

    settings = {"a": (False, True), "b": (False, True), "c": (1, 2)}
    return {"build": build, "settings": settings, "batch": torch.ones(2), "together": {"c": {"a": True, "b": True}}}


def named_as_inert() -> Any:
    def build(name: str, scale: float) -> Callable[[Tensor], Tensor]:
        assert name
        return lambda x: x * scale

    settings = {"name": ("a", "b"), "scale": (1.0, 2.0)}
    return {"build": build, "settings": settings, "batch": torch.ones(2), "inert": ["name"]}


def buffers_of_positions() -> Any:
    class Tabled(nn.Module):
        def __init__(self, longest: int) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(longest, longest).tril(), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.mask[: len(x), : len(x)]

    return {"build": Tabled, "settings": {"longest": (8, 9)}, "batch": (torch.ones(3, 3),)}


def two_batches() -> Any:
    """Only the longer one is cut."""

    def build(window: int) -> Callable[[Tensor], Tensor]:
        return lambda x: x[-window:].sum()

    return {"build": build, "settings": {"window": (8, 4)}, "batches": [torch.ones(2), torch.ones(6)]}


KNOBS = (
    functions_of_settings, acts_in_training_alone, acts_in_the_gradient_alone, gates_that_start_at_zero,
    several_at_once, named_as_inert, buffers_of_positions, two_batches,
)  # fmt: skip


@pytest.mark.parametrize("make", KNOBS, ids=lambda make: make.__name__)
def test_knobs(make: Callable[[], Any], one_thread: None) -> None:
    report = _report("config.knobs", make)
    assert report.findings == ()
    assert report.verdict == Verdict.PASS


class Beside(nn.Module):
    """Wrong: a layer that is made first, so that the others draw other first values, and is never called."""

    def __init__(self, gated: bool, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(4, width) if gated else None
        self.out = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(x)
        return out


def made_and_never_called() -> Any:
    settings = {"gated": (True, False), "width": (4, 8)}
    return {"build": Beside, "settings": settings, "batch": (torch.ones(2, 4),)}


def test_first_values_of_others_are_no_effect(one_thread: None) -> None:
    found = _report("config.knobs", made_and_never_called).findings
    assert {(f.rule.rpartition(".")[2], f.where) for f in found} == {("unread", "gated"), ("unread", "width")}


def test_a_part_that_is_missing_is_told() -> None:
    with pytest.raises(BadUsage, match="eps: expected its usual value and another one"):
        checked(made(settings={"eps": (1, 1)}))
    with pytest.raises(BadUsage, match="batch: expected what the built thing is called with"):
        checked({"build": Block, "settings": {"eps": (1, 2)}})


@pytest.mark.parametrize(("knob", "dead"), [("attn_logit_softcapping", True), ("sliding_window", False)])
def test_a_family_by_its_own_configuration(knob: str, dead: bool, one_thread: None) -> None:
    """Gemma 3 declares a cap of attention scores and passes it on to nothing; its window works."""
    found = from_bytes(implementation({"family": "gemma3_text"})(KnobCall(knob=knob))["record"])
    assert found["dead"] is dead
