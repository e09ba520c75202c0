"""Configurations whose task switches do not fit the data."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch

from assay.audits.components.config.switches import TaskCall, answer
from assay.audits.components.config.task_own import SAMPLES, SWITCHES, config
from assay.audits.components.config.tasks import NAME
from assay.audits.fault import CONSTRUCTED, fault
from assay.audits.terms import Fault, Outputs


def faulty(*caught_by: str, link: str = CONSTRUCTED) -> Callable[[Callable[[], Any]], Fault]:
    """Turn a function that makes a wrong configuration into an entry; its docstring is the entry's."""

    def entry(make: Callable[[], Any]) -> Fault:
        @functools.wraps(make)
        def wrong(call: TaskCall) -> Outputs:
            return answer(make, call)

        return fault(NAME, *caught_by, link=link)(wrong)

    return entry


def _made(samples: Any = SAMPLES, **tasks: Any) -> dict[str, Any]:
    return {"config": config(**tasks), "samples": samples, "switches": SWITCHES}


@faulty("off")
def detection_off_over_objects() -> dict[str, Any]:
    """Detection is switched off, and the samples have objects.

    Effect: the annotations are dropped, and the model never learns to place a box.
    """
    return _made(detection_enabled=False)


@faulty("off")
def weight_of_zero() -> dict[str, Any]:
    """The weight of the captions' loss is zero, which is as good as off.

    Effect: the loss is computed, shown and not trained on.
    """
    return _made(caption={"weight": 0.0})


@faulty("on")
def segmentation_on_without_masks() -> dict[str, Any]:
    """Segmentation is switched on, and no sample has a mask.

    Effect: its loss is zero from the first step, and its head stays random.
    """
    return _made(segmentation_enabled=True)


@faulty("on")
def objects_renamed_in_the_data() -> dict[str, Any]:
    """The data calls them ``annotations`` since its last release; the code looks for ``objects``.

    Effect: a lookup with an empty default finds nothing, in every sample.
    """
    renamed = [{("annotations" if key == "objects" else key): value for key, value in one.items()} for one in SAMPLES]
    return _made(renamed)


@faulty("on")
def columns_of_nothing() -> dict[str, Any]:
    """Objects are columns of lists, all of them empty: the mapping is there in every sample.

    Effect: a test for the key passes, and there is nothing to detect.
    """
    return _made([{**one, "objects": {"box": [], "label": []}} for one in SAMPLES])


@faulty("on")
def annotated_in_evaluation_only() -> dict[str, Any]:
    """The evaluation split has objects, the training split has none.

    Effect: detection is measured and never trained.
    """
    bare = [{**one, "objects": []} for one in SAMPLES]
    return _made({"train": bare, "eval": list(SAMPLES)})


@faulty("known")
def switch_misspelt() -> dict[str, Any]:
    """The file says ``detection_enable``, the code reads ``detection_enabled`` with a default.

    Effect: whatever the file says, the default holds.
    """
    made = config(detection_enable=True)
    del made["tasks"]["detection_enabled"]
    return {"config": made, "samples": list(SAMPLES), "switches": SWITCHES}


@faulty("readable")
def false_as_a_text() -> dict[str, Any]:
    """The switch came from a command line as the text ``False``.

    Effect: it is true wherever it is read.
    """
    return _made(segmentation_enabled="False")


@faulty("off")
def last_sample_alone_has_objects() -> dict[str, Any]:
    """Detection is off; one sample of many, the last one, has an object.

    Effect: a look at the first samples shows nothing.
    """
    bare = [{**one, "objects": []} for one in SAMPLES * 20]
    return _made([*bare, SAMPLES[0]], detection_enabled=False)


@faulty("off")
def disabled_switch_turned_round() -> dict[str, Any]:
    """The switch says that detection is disabled, and it is set over samples with objects.

    Effect: as with detection off; the name reads as if something were on.
    """
    made = config(disable_detection=True)
    return {"config": made, "samples": list(SAMPLES), "switches": {"!tasks.disable_detection": "objects"}}


_CALLS = itertools.count()


@faulty("nondeterministic")
def annotations_drawn_anew() -> dict[str, Any]:
    """Samples lose their objects at random each time they are read.

    Effect: whether a task has data depends on the day.
    """

    def objects(_sample: Any) -> bool:
        return next(_CALLS) % 7 == 3

    return {"config": config(), "samples": list(SAMPLES), "switches": {"tasks.detection_enabled": objects}}


@faulty("leaks")
def reading_sets_a_seed() -> dict[str, Any]:
    """Reading a sample sets the global seed.

    Effect: whatever else draws, dropout first, draws the same for every sample.
    """

    def objects(sample: Any) -> Any:
        torch.manual_seed(0)
        return sample.get("objects")

    return {"config": config(), "samples": list(SAMPLES), "switches": {"tasks.detection_enabled": objects}}
