"""What wrong pipelines are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from assay.audits.components.pipeline.operations import NAME
from assay.audits.components.pipeline.own import Collator, Talks
from assay.audits.families.discovery import loaded
from assay.audits.fault import CONSTRUCTED, fault
from assay.audits.pipeline_run import BatchCall, Runner
from assay.audits.pipelines import Pipeline, checked
from assay.audits.terms import Fault, Outputs

FAMILY = "qwen2_5_vl"


@functools.lru_cache(maxsize=1)
def model() -> Any:
    """One for all faults, which leave it as it is; without a cache, as packs need it."""
    return cacheless(loaded(FAMILY).build(0))


def cacheless(made: Any) -> Any:
    """A model whose text model makes no cache unless it is told to."""
    made.config.text_config.use_cache = False
    return made


def pipeline(collator: Any, dataset: Any = None) -> Pipeline:
    """A pipeline around a collator that has a processor."""
    side = int(collator.processor.image_processor.patch_size)
    return Pipeline(dataset=dataset or Talks(side), collator=collator, processor=collator.processor, model=model())


@functools.lru_cache(maxsize=1)
def _runner(make: Callable[[], Any]) -> Runner:
    return Runner(checked(make()))


def right() -> Pipeline:
    """The form of the faults with nothing wrong in it."""
    return pipeline(Collator(FAMILY))


def clean(call: BatchCall) -> Outputs:
    """:func:`right`, as faults are asked."""
    return _runner(right)(call)


def faulty(
    *caught_by: str, link: str = CONSTRUCTED, also: tuple[str, ...] = ()
) -> Callable[[Callable[[], Any]], Fault]:
    """Turn a function that makes a wrong pipeline into an entry; its docstring is the entry's."""

    def entry(make: Callable[[], Any]) -> Fault:
        @functools.wraps(make)
        def wrong(call: BatchCall) -> Outputs:
            return _runner(make)(call)

        return fault(NAME, *caught_by, link=link, also=also)(wrong)

    return entry
