"""Right ways of loading that are written otherwise than ours: none is accused of anything."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from assay.audits import registry
from assay.audits.components.loading.path_own import Adapted, Detector, against, model, padded_left, plain, processor
from assay.audits.components.loading.quantisation_own import Bytes, Net, Packed, net, quantised, request
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Report, Verdict


def _report(operation: str, make: Callable[[], Any], case: str = "") -> Report:
    target = {"kind": "import", "ref": f"{__name__}:{make.__name__}", "operation": operation}
    candidate = Candidate(operation=operation, name=make.__name__, form="make", target=target, trusted=True)
    return audit(registry.operation(operation), candidate, Options(cases=(case,) if case else ()))


class Compiled(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self._orig_mod = inner
        self.config = inner.config

    def forward(self, *args: Any, **more: Any) -> Any:
        return self._orig_mod(*args, **more)

    def get_input_embeddings(self) -> Any:
        return self._orig_mod.get_input_embeddings()


class Distributed(nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.module = inner

    def forward(self, *args: Any, **more: Any) -> Any:
        return self.module(*args, **more)


def compiled_and_distributed() -> Any:
    def training() -> Any:
        made, words = plain()
        return Distributed(Compiled(made)), words

    return {"training": training, "inference": padded_left}


def marked_template() -> Any:
    """For masks of assistants' tokens: rendered alike."""

    def training() -> Any:
        made, words = plain()
        words.chat_template = "{# for training #}" + words.chat_template
        return made, words

    return {"training": training, "inference": padded_left}


def ready_for_training() -> Any:
    def training() -> Any:
        made, words = plain()
        made.train()
        made.config.use_cache = False
        made.config.pad_token_id = 3
        made.gradient_checkpointing_enable()
        made.enable_input_require_grads()
        for name, parameter in made.named_parameters():
            parameter.requires_grad_("visual" not in name)
        return made, words

    return {"training": training, "inference": padded_left}


def other_attention() -> Any:
    def change(made: Any, _words: Any) -> None:
        made.set_attn_implementation("eager")

    return against(change)


def handed_over_loaded() -> Any:
    return {"training": plain(), "inference": {"model": model(), "tokenizer": processor()}}


def text_alone() -> Any:
    return {"training": (model(), processor().tokenizer), "inference": (model(), processor().tokenizer)}


def tuples_for_lists() -> Any:
    def change(_made: Any, words: Any) -> None:
        words.image_processor.image_mean = tuple(words.image_processor.image_mean)

    return against(change)


def half_precision_declared() -> Any:
    def change(made: Any, _words: Any) -> None:
        for parameter in made.parameters():
            parameter.data = parameter.data.bfloat16()

    return {**against(change), "declared": "dtype"}


def adapters_on_both_sides() -> Any:
    def adapted() -> Any:
        made, words = plain()
        return Adapted(made), words

    return {"training": adapted, "inference": adapted}


def another_head_for_each() -> Any:
    """Both are declared; the wrapper asks for more than a batch has."""

    class Strict(Detector):
        def forward(self, input_ids: Tensor, boxes: Tensor, **more: Any) -> Any:
            return super().forward(input_ids, **more), boxes

    def training() -> Any:
        made, words = plain()
        return Strict(made), words

    return {"training": training, "inference": padded_left, "declared": ["detection_head"]}


def tied_on_both_sides() -> Any:
    def load() -> Any:
        made, words = plain()
        made.lm_head.weight = made.get_input_embeddings().weight
        return made, words

    return {"training": load, "inference": load}


def seeds_and_settings_of_a_script() -> Any:
    def training() -> Any:
        torch.manual_seed(42)
        torch.set_float32_matmul_precision("high")
        return plain()

    return {"training": training, "inference": padded_left}


def no_words_at_all() -> Any:
    return {"training": net, "inference": net}


PATHS = (
    compiled_and_distributed, marked_template, ready_for_training, other_attention, handed_over_loaded, text_alone,
    tuples_for_lists, half_precision_declared, adapters_on_both_sides, another_head_for_each, tied_on_both_sides,
    seeds_and_settings_of_a_script, no_words_at_all,
)  # fmt: skip


@pytest.mark.parametrize("make", PATHS, ids=lambda make: make.__name__)
def test_two_paths(make: Callable[[], Any], one_thread: None) -> None:
    report = _report("loading.paths", make, "text")
    assert report.findings == ()
    assert report.verdict == Verdict.PASS


class Floats(nn.Module):
    """Levels that are not even, as NF4 has them, in groups of 32, packed."""

    LEVELS = torch.tensor([-1, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1])

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        parts = layer.weight.detach().reshape(layer.out_features, -1, 32)
        self.scale = parts.abs().amax(-1, keepdim=True)
        codes = (parts[..., None] / self.scale[..., None] - self.LEVELS).abs().argmin(-1).to(torch.uint8).flatten(1)
        self.codes = codes[:, ::2] | (codes[:, 1::2] << 4)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        codes = torch.stack([self.codes & 15, self.codes >> 4], -1).flatten(1).long()
        weight = (self.LEVELS[codes].reshape(len(codes), -1, 32) * self.scale).flatten(1)
        return nn.functional.linear(x, weight.to(x), self.bias)


class Dynamic(Bytes):
    """Rounds its inputs to eight bits as well."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        return super().forward((x / scale).round() * scale)


def uneven_levels() -> Any:
    return request(quantised(Floats))


def inputs_rounded_too() -> Any:
    return request(quantised(Dynamic), 8, group=0)


def head_too() -> Any:
    return request(quantised(Packed, exclude=("gate",)))


def more_in_some_layers() -> Any:
    made = quantised(Packed)
    for block, original in zip(made.blocks, net().blocks, strict=True):
        block["down"] = Bytes(original["down"])  # type: ignore[operator, index]
    return request(made, {"down": 8, "*": 4})


def rest_in_half_precision() -> Any:
    made = quantised(Packed)
    made.embed.weight.data = made.embed.weight.data.bfloat16()
    return request(made)


def original_as_a_function() -> Any:
    return {**request(quantised(Packed)), "original": net, "model": lambda: quantised(Packed)}


def router_named_as_a_path() -> Any:
    return {**request(quantised(Packed)), "exclude": ["blocks.*.gate", "head"], "bits": {"blocks.*": 4}}


def told_in_the_configuration() -> Any:
    made = quantised(Packed)
    made.config = {}  # type: ignore[assignment]
    made.config = type("C", (), {"quantization_config": {"load_in_4bit": True, "llm_int8_skip_modules": ["gate"]}})()
    return request(made)


QUANTISED = (
    uneven_levels, inputs_rounded_too, head_too, more_in_some_layers, rest_in_half_precision, original_as_a_function,
    router_named_as_a_path, told_in_the_configuration,
)  # fmt: skip


@pytest.mark.parametrize("make", QUANTISED, ids=lambda make: make.__name__)
def test_quantisation(make: Callable[[], Any], one_thread: None) -> None:
    report = _report("loading.quantisation", make)
    assert report.findings == ()
    assert report.verdict == Verdict.PASS


def test_a_part_that_is_missing_is_told() -> None:
    from assay.audits.components.loading import made, quantised
    from assay.audits.usage import BadUsage

    with pytest.raises(BadUsage, match="inference: expected a function"):
        made.checked({"training": plain})
    with pytest.raises(BadUsage, match="training: expected a torch module"):
        made.checked({"training": lambda: (1, 2), "inference": plain})
    with pytest.raises(BadUsage, match="bits: expected a whole number"):
        quantised.checked({"model": Net(), "original": Net()})
    assert copy.copy(made.checked({"training": plain, "inference": plain, "declared": "a"})).declared == ("a",)
