"""What a pipeline trains on, conversation by conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def by(
    make: Callable[[], Mapping[str, Any]], columns: Callable[[Any], Any] = lambda samples: samples
) -> Callable[[Sequence[Mapping[str, Any]]], tuple[Any, Any, Any]]:
    """Ids and labels of each conversation alone by the collator of a pipeline, and the tokenizer that decodes them.

    ``columns`` makes of conversations what the collator is handed.
    """

    def told(samples: Sequence[Mapping[str, Any]]) -> tuple[list[list[int]], list[list[int]], Any]:
        made = make()
        batches = [made["collator"]([sample]) for sample in columns(samples)]
        ids, labels = ([batch[name][0].tolist() for batch in batches] for name in ("input_ids", "labels"))
        processor = made.get("processor")
        return ids, labels, made["tokenizer"] if processor is None else processor.tokenizer

    return told
