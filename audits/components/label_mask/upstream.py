"""What transformers itself offers for labels and batches, as functions with our call forms.

They run in the judge's process, which has transformers already: its templates and tokenizers make the truth.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from assay.audits.candidates import of_function
from assay.audits.components.label_mask import collate, label_forms, labels
from assay.audits.components.label_mask.labels import Inputs
from assay.audits.terms import Candidate, Inexpressible, Outputs
from assay.reference.label_mask import IGNORE

_HERE = __name__


def seq2seq(features: Any, tokenizer: Any) -> Any:
    """``DataCollatorForSeq2Seq``: pads ids by the tokenizer and labels by itself."""
    from transformers import DataCollatorForSeq2Seq

    return _made(DataCollatorForSeq2Seq)(tokenizer)(features)


def token_classification(features: Any, tokenizer: Any) -> Any:
    """``DataCollatorForTokenClassification``: likewise, with the labels of tokens."""
    from transformers import DataCollatorForTokenClassification

    return _made(DataCollatorForTokenClassification)(tokenizer)(features)


def default(features: Any, _tokenizer: Any) -> Any:
    """``default_data_collator``: stacks rows of one length."""
    from transformers import default_data_collator

    return _made(default_data_collator)(features)


def language_modeling(features: Any, tokenizer: Any) -> Any:
    """``DataCollatorForLanguageModeling(mlm=False)``: labels are the ids, the pad's ignored. It is given none."""
    from transformers import DataCollatorForLanguageModeling

    rows = [{name: value for name, value in row.items() if name != "labels"} for row in features]
    return _made(DataCollatorForLanguageModeling)(tokenizer, mlm=False)(rows)


def language_modeling_with_labels(features: Any, tokenizer: Any) -> Any:
    """The same on rows that have labels: of one length, since it does not pad them."""
    from transformers import DataCollatorForLanguageModeling

    return _made(DataCollatorForLanguageModeling)(tokenizer, mlm=False)(features)


def assistant_masks(messages: Any, processor: Any) -> dict[str, Any]:
    """Labels by ``apply_chat_template(..., return_assistant_tokens_mask=True)``."""
    found = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, add_generation_prompt=False
    )
    ids = torch.as_tensor(found["input_ids"]).reshape(-1)
    mask = torch.as_tensor(found["assistant_masks"]).reshape(-1)
    return {"input_ids": ids, "labels": ids.where(mask.bool(), IGNORE)}


def conversations_modeling(inputs: Inputs) -> Outputs:
    """Conversations through the chat template, then ``DataCollatorForLanguageModeling(mlm=False)``."""
    from transformers import DataCollatorForLanguageModeling

    if inputs.train != "all":
        raise Inexpressible("the collator trains everything")
    processor = inputs.processor()
    rows = []
    for sample in range(len(inputs.conversations)):
        text = processor.apply_chat_template(label_forms.messages(inputs, sample), tokenize=False)
        encoded = label_forms.encoder(inputs, sample, processor)(text)
        rows.append({"input_ids": list(encoded["input_ids"][0])})
    batch = _made(DataCollatorForLanguageModeling)(processor.tokenizer, mlm=False)(rows)
    return {name: batch[name] for name in ("input_ids", "labels", "attention_mask")}


def _made(name: Any) -> Any:
    """Classes of transformers as foreign code: their types are not trusted."""
    return name


def _collator(name: str, *, form: str = "features", train: str = "") -> Candidate:
    found = of_function(collate.NAME, name, f"{_HERE}:{name}", origin="transformers", form=form)
    return dataclasses.replace(found, scope={"train": train} if train else {}, trusted=True)


def _labels(name: str, *, form: str = "", said: str = "", costly: bool = False, **scope: Any) -> Candidate:
    shown = f"{name}@{said}" if said else name
    found = of_function(labels.NAME, shown, f"{_HERE}:{name}", origin="transformers", form=form)
    return dataclasses.replace(found, scope=scope, trusted=True, costly=costly)


CANDIDATES = (
    _labels("assistant_masks", form="sample", costly=True, template="generation", parts=True),
    _labels("assistant_masks", form="sample", said="unmarked", costly=True, template="qwen2_5", parts=True),
    _labels("conversations_modeling", costly=True, train="all"),
    _collator("seq2seq"),
    _collator("token_classification"),
    _collator("default", form="stacking"),
    _collator("language_modeling", train="all"),
    _collator("language_modeling_with_labels", form="stacking"),
)
