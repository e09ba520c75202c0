"""Collators of transformers, and its ``Trainer`` on padded and packed batches, as pipelines."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from assay.audits.components.pipeline.own import Collator, Ids, Packer, Talks, text_model
from assay.audits.families.discovery import loaded
from assay.audits.pipelines import Pipeline

FAMILY = "qwen2_5_vl"
VOCABULARY = 576


class Columns(Sequence[dict[str, Any]]):
    """Ready-made samples with these columns, and no others."""

    def __init__(self, samples: Sequence[Mapping[str, Any]], *names: str) -> None:
        """``names`` are kept."""
        self._samples, self._names = samples, names

    def __len__(self) -> int:
        """How many there are."""
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        """Its columns."""
        return {name: self._samples[index][name] for name in self._names}


def _text(collator: Any, own: Collator, *columns: str, model: Any = None) -> Pipeline:
    samples = Columns(Ids(own), *columns)
    made = model if model is not None else text_model(VOCABULARY)
    return Pipeline(dataset=samples, collator=collator, tokenizer=own.processor.tokenizer, model=made)


def language_modeling() -> Pipeline:
    """``DataCollatorForLanguageModeling`` without masks: padded texts, all of which are trained on."""
    from transformers import DataCollatorForLanguageModeling

    own = Collator(FAMILY)
    return _text(DataCollatorForLanguageModeling(own.processor.tokenizer, mlm=False), own, "input_ids")


def language_modeling_qwen2_5_vl() -> Pipeline:
    """``DataCollatorForLanguageModeling`` without masks, for Qwen2.5-VL on texts."""
    from transformers import DataCollatorForLanguageModeling

    own = Collator(FAMILY)
    collator = DataCollatorForLanguageModeling(own.processor.tokenizer, mlm=False)
    return _text(collator, own, "input_ids", model=loaded(FAMILY).build(0))


def token_classification() -> Pipeline:
    """``DataCollatorForTokenClassification``: padded rows, labels padded too."""
    from transformers import DataCollatorForTokenClassification

    own = Collator(FAMILY)
    return _text(DataCollatorForTokenClassification(own.processor.tokenizer), own, "input_ids", "labels")


def trainer(model: Any, collator: Any, dataset: Any, processor: Any, **arguments: Any) -> Any:
    """A ``Trainer`` that writes nothing and tells nothing."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments

    with torch.random.fork_rng(devices=[]):  # it seeds all generators
        told = TrainingArguments(
            output_dir=tempfile.gettempdir(), per_device_train_batch_size=2, use_cpu=True, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, **arguments,
        )  # fmt: skip
        made = Trainer(
            model=model, args=told, data_collator=collator, train_dataset=dataset, processing_class=processor
        )
    made.remove_callback(PrinterCallback)
    return made


def trainer_padded() -> Any:
    """``Trainer`` for a text model on rows that ``DataCollatorForSeq2Seq`` pads."""
    from transformers import DataCollatorForSeq2Seq

    own = Collator(FAMILY)
    collator = DataCollatorForSeq2Seq(own.processor.tokenizer)
    return trainer(text_model(VOCABULARY), collator, Ids(own), own.processor.tokenizer)


def trainer_packed() -> Any:
    """``Trainer`` for a text model on packs of ``DataCollatorWithFlattening``."""
    from transformers import DataCollatorWithFlattening

    own = Collator(FAMILY)
    return trainer(text_model(VOCABULARY), DataCollatorWithFlattening(), Ids(own), own.processor.tokenizer)


def trainer_language_modeling() -> Any:
    """``Trainer`` for a text model on texts that ``DataCollatorForLanguageModeling`` pads."""
    from transformers import DataCollatorForLanguageModeling

    own = Collator(FAMILY)
    tokenizer = own.processor.tokenizer
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return trainer(text_model(VOCABULARY), collator, Columns(Ids(own), "input_ids"), tokenizer)


def trainer_smoothed() -> Any:
    """``Trainer`` with label smoothing for a text model on padded rows."""
    from transformers import DataCollatorForSeq2Seq

    own = Collator(FAMILY)
    collator, tokenizer = DataCollatorForSeq2Seq(own.processor.tokenizer), own.processor.tokenizer
    return trainer(text_model(VOCABULARY), collator, Ids(own), tokenizer, label_smoothing_factor=0.1)


def _talks(own: Collator) -> Talks:
    return Talks(int(own.processor.image_processor.patch_size))


def trainer_padded_qwen2_5_vl() -> Any:
    """``Trainer`` for Qwen2.5-VL on conversations that a collator of ours pads, which reads columns of its own."""
    own = Collator(FAMILY)
    return trainer(loaded(FAMILY).build(0), own, _talks(own), own.processor, remove_unused_columns=False)


def trainer_packed_qwen2_5_vl() -> Any:
    """``Trainer`` for Qwen2.5-VL on packs of a collator of ours, its text model's cache turned off."""
    model = loaded(FAMILY).build(0)
    model.config.text_config.use_cache = False
    own = Packer(FAMILY, model)
    return trainer(model, own, _talks(own), own.processor, remove_unused_columns=False)


def trainer_smoothed_qwen2_5_vl() -> Any:
    """``Trainer`` with label smoothing for Qwen2.5-VL on padded conversations."""
    own = Collator(FAMILY)
    arguments = {"remove_unused_columns": False, "label_smoothing_factor": 0.1}
    return trainer(loaded(FAMILY).build(0), own, _talks(own), own.processor, **arguments)
