"""Right pipelines with templates, pictures, losses and modes that are written otherwise: none is accused."""

from __future__ import annotations

import copy
import dataclasses
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from assay.audits import registry
from assay.audits.components.pipeline.own import IGNORED, TEMPLATE, Collator, Ids, Talks, text_model
from assay.audits.components.pipeline.upstream import Columns, trainer
from assay.audits.components.pipeline.wrong import FAMILY, model, pipeline
from assay.audits.families.discovery import loaded
from assay.audits.pipeline_run import Runner
from assay.audits.pipelines import Pipeline, checked
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Verdict

LAWS = tuple(law.name for law in registry.component("pipeline").laws)
PARTS = (
    "{% for part in m.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}"
)
MERGING = (  # the system prompt is the beginning of the user's first turn
    "{% set ns = namespace(rule='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% for part in m.content %}{% set ns.rule = ns.rule + part.text + '\n\n' %}{% endfor %}{% else %}"
    "<|im_start|>{{ m.role }}\n{{ ns.rule }}{% set ns.rule = '' %}" + PARTS + "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'system' %}<<SYS>>" + PARTS + "<</SYS>>"
    "{% elif m.role == 'user' %}[INST] " + PARTS + " [/INST]{% else %}" + PARTS + "<|im_end|>{% endif %}{% endfor %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<|im_start|>{{ m.role }}\n" + PARTS + "<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWER = re.compile(r"(?:<\|im_start\|>assistant\n|\[/INST\]|### Answer: )(.*?<\|im_end\|>)", re.DOTALL)


class Rendered(Collator):
    """Labels by what stands after the assistant's head; a template of its own, and rows of another if it is given."""

    def __init__(self, template: str = TEMPLATE, rows: str = "") -> None:
        super().__init__(FAMILY)
        self.processor = copy.copy(self.processor)
        self.processor.tokenizer = copy.deepcopy(self.processor.tokenizer)
        self.processor.chat_template = template
        self.rows = rows

    def one(self, messages: Any) -> dict[str, Any]:
        told = self.processor.chat_template
        self.processor.chat_template = self.rows or told
        try:
            return super().one(messages)
        finally:
            self.processor.chat_template = told

    def kept(self, full: str, messages: Any, offsets: Any) -> list[bool]:
        spans = [match.span(1) for match in ANSWER.finditer(full)]
        return [any(low <= first and last <= high for low, high in spans) for first, last in offsets]


class Wordy(Rendered):
    """Writes an instruction into each question, by how long the answer is."""

    def one(self, messages: Any) -> dict[str, Any]:
        brief = all(
            len(part["text"]) < 10 for item in messages if item["role"] == "assistant" for part in item["content"]
        )
        asked = [{"type": "text", "text": " Answer in a word, yes or no." if brief else " Answer in a sentence."}]
        return super().one([{**item, "content": [{"type": "text", "text": "Question: "}, *item["content"], *asked]}
                            if item["role"] == "user" else item for item in messages])  # fmt: skip


class Jittered(Rendered):
    """Makes pictures brighter or darker, as the global generator draws."""

    def one(self, messages: Any) -> dict[str, Any]:
        from PIL import ImageEnhance

        def other(part: Mapping[str, Any]) -> Mapping[str, Any]:
            if part["type"] != "image":
                return part
            return {**part, "image": ImageEnhance.Brightness(part["image"]).enhance(random.uniform(0.5, 1.5))}

        return super().one([{**item, "content": [other(part) for part in item["content"]]} for item in messages])


class Smaller(Rendered):
    """Halves large pictures before the processor sees them."""

    def one(self, messages: Any) -> dict[str, Any]:
        def other(part: Mapping[str, Any]) -> Mapping[str, Any]:
            if part["type"] != "image" or min(part["image"].size) < 16:
                return part
            return {**part, "image": part["image"].resize([max(8, size // 16 * 8) for size in part["image"].size])}

        return super().one([{**item, "content": [other(part) for part in item["content"]]} for item in messages])


class Half(Rendered):
    """Hands pixels over in bfloat16."""

    def labelled(self, made: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        batch = super().labelled(made)
        return {name: value.bfloat16() if name == "pixel_values" else value for name, value in batch.items()}


class Kind(Rendered):
    """Puts an instruction in front of conversations that have none."""

    def one(self, messages: Any) -> dict[str, Any]:
        kind = {"role": "system", "content": [{"type": "text", "text": "be kind"}]}
        return super().one(messages if messages[0]["role"] == "system" else [kind, *messages])


def _experts() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=576, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=0.1,
    )  # fmt: skip
    untyped: Any = MixtralForCausalLM
    return untyped(config).eval()


def _own_loss(model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
    labels = inputs.pop("labels")
    out = model(**inputs)
    each = functional.cross_entropy(
        out.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    )
    loss = each.sum() / (kwargs.get("num_items_in_batch") or (labels[:, 1:] != IGNORED).sum())
    return (loss, out) if return_outputs else loss


class Fused(nn.Module):
    """Makes no logits where it makes a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = text_model(576)
        self.config = self.inner.config

    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        out = self.inner(input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
        if labels is not None:
            out.logits = None
        return out


class Forgetful(nn.Module):
    """Has dropout in a module and in a setting, and noise that is scaled by another; normalises by batches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = text_model(576)
        self.config = self.inner.config
        for layer in self.inner.model.layers:
            layer.self_attn.attention_dropout = 0.3
        self.after, self.router_jitter_noise = nn.Dropout(0.5), 0.1
        self.normal = nn.BatchNorm1d(64)

    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        embedded = self.after(self.inner.model.embed_tokens(input_ids))
        embedded = self.normal(embedded.flatten(0, 1)).reshape(embedded.shape)
        if self.training and self.router_jitter_noise:
            embedded = embedded * torch.empty_like(embedded).uniform_(1 - self.router_jitter_noise, 1)
        return self.inner(inputs_embeds=embedded, attention_mask=attention_mask, labels=labels, **kwargs)


class Noisy(Forgetful):
    """Draws in training whatever its settings are."""

    def forward(self, input_ids: Tensor, attention_mask: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        out = super().forward(input_ids, attention_mask, None, **kwargs)
        if self.training:
            out.logits = out.logits * (1 + 0.1 * torch.rand_like(out.logits))
        loss = {"loss": _own_loss(lambda **_: out, {"labels": labels}, **kwargs)} if labels is not None else {}
        return {"logits": out.logits, **loss}


def _texts(made: Any) -> Pipeline:
    from transformers import DataCollatorForSeq2Seq

    own = Collator(FAMILY)
    samples = Columns(Ids(own), "input_ids", "labels")
    return Pipeline(
        dataset=samples, collator=DataCollatorForSeq2Seq(own.processor.tokenizer), tokenizer=own.processor.tokenizer,
        model=made,
    )  # fmt: skip


def _checkpointed() -> Pipeline:
    made = loaded(FAMILY).build(0)
    made.gradient_checkpointing_enable()
    return dataclasses.replace(pipeline(Rendered()), model=made)


def _trainer_with_a_loss() -> Any:
    own = Rendered()
    made = trainer(model(), own, Talks(4), own.processor, remove_unused_columns=False)
    made.compute_loss = lambda m, inputs, return_outputs=False, num_items_in_batch=None: _own_loss(
        m, inputs, return_outputs, num_items_in_batch=num_items_in_batch
    )
    made.model_accepts_loss_kwargs = made.loss_is_scaled_for_ga = True
    return made


class Told(Sequence[Any]):
    """Keeps each answer beside the messages too, and a number that is drawn from it."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: Any) -> Any:
        made = Talks(4)[index]
        said = made["messages"][-1]["content"][0]["text"]
        return {**made, "answer": said, "id": len(said)}


RIGHT: dict[str, Callable[[], Any]] = {
    "a template that merges": lambda: pipeline(Rendered(MERGING)),
    "merged by the collator": lambda: pipeline(Rendered(TEMPLATE, MERGING)),
    "brackets": lambda: pipeline(Rendered(BRACKETS)),
    "brackets, whatever the template says": lambda: pipeline(Rendered(TEMPLATE, BRACKETS)),
    "a template that refuses": lambda: pipeline(Rendered(STRICT, TEMPLATE)),
    "more than the messages say": lambda: pipeline(Wordy()),
    "brighter or darker": lambda: pipeline(Jittered()),
    "smaller pictures": lambda: pipeline(Smaller()),
    "pixels in half precision": lambda: pipeline(Half()),
    "a loss of its own": lambda: dataclasses.replace(pipeline(Rendered()), loss=_own_loss),
    "a trainer's loss of its own": _trainer_with_a_loss,
    "checkpointed": _checkpointed,
    "no logits beside a loss": lambda: _texts(Fused()),
    "dropout": lambda: _texts(Forgetful().eval()),
    "drawn in training": lambda: _texts(Noisy().eval()),
    "an instruction of its own": lambda: pipeline(Kind()),
    "experts": lambda: _texts(_experts()),
    "answers told twice": lambda: pipeline(Rendered(), Told()),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_pipeline_is_not_accused(name: str, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    runner = Runner(checked(RIGHT[name]()))
    monkeypatch.setattr("assay.audits.resolve.implementation", lambda _target, _form: runner)
    candidate = Candidate(operation="pipeline.batch", name=name, target={}, trusted=True)
    report = audit(registry.operation("pipeline.batch"), candidate, Options(laws=LAWS, cases=("two", "all")))
    assert report.findings == ()
    assert report.verdict == Verdict.PASS
