"""Tiny text models of every family with a causal language model, made from its own configuration class.

What the installed transformers lists for causal language modelling and for image-text-to-text, found by reading source
text. A family with a file of its own (multi-axis rotary) comes from there, with its processor and its images; all
others are asked for text alone.
"""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from assay.audits.families import _release, discovery
from assay.audits.families._shrink import ORDINARY, VOCABULARY, shrunk
from assay.audits.families.batch_case import BatchCase
from assay.audits.families.samples import Sample, Text, parse
from assay.audits.families.sites import Sites
from assay.audits.terms import Family

if TYPE_CHECKING:
    import torch

MAPPINGS = ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES")
"""Of ``models/auto/modeling_auto.py``; where a model type is in both, the last one names its class."""
LARGEST = 30_000_000
"""Parameters of a model that is still tiny."""
_SEES = "its forward asks for an image, of which there is no processor here"
_WIDE = "it does not run in float64, in which models are compared"
UNBUILT: dict[str, str] = {
    **{
        name: f"{name}: {_SEES}"
        for name in ("git", "idefics", "kosmos-2", "pix2struct", "pp_formulanet", "udop", "vision-encoder-decoder")
    },
    **{name: f"{name}: {_WIDE}" for name in ("inkling2", "inkling2_text", "xglm")},
    "glmga": "glmga: a configuration of glm46v, which is audited",
    "qwen2_5_omni_thinker": "qwen2_5_omni_thinker: part of qwen2_5_omni, which is audited",
    "qwen3_omni_moe_thinker": "qwen3_omni_moe_thinker: part of qwen3_omni_moe, which is audited",
    "reformer": "reformer: trains on sequences of one length only",
    "t5gemma2": "t5gemma2: it has an encoder: its labels are not the ids that it is given",
    "xlnet": "xlnet: its targets are chosen by a permutation, not by a shift",
    "step3p7": "step3p7: its configuration leaves the window of its attention open",
}
"""Families that are known to have no tiny model here, each with the reason; others say theirs when they are built."""
MORE: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
"""Fields that belong together in a way of the family's own."""


@lru_cache(maxsize=1)
def classes() -> dict[str, str]:
    """Model types of the installed transformers and the name of the class with their head; nothing is imported."""
    source = (_release.models_folder() / "auto" / "modeling_auto.py").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for mapping in MAPPINGS:
        body = re.search(mapping + r"\b[^=]*= OrderedDict\(\s*\[(.*?)\]\s*\)", source, re.DOTALL)
        found.update(re.findall(r'\(\s*"([^"]+)",\s*"([^"]+)"', body.group(1) if body else ""))
    return dict(sorted(found.items()))


def family(name: str) -> Family | str:
    """The family called ``name``, or in words why it has no tiny model here."""
    own = discovery.family(name) if name in discovery.installed_families() else ""
    if isinstance(own, Family):
        return own
    if name in UNBUILT or name not in classes():
        return UNBUILT.get(name) or own or f"{name}: the installed transformers has no causal language model of it"
    return Family(
        name=name, model_type=name, modalities=(), build=partial(build, name), batch=batch,
        sites=Sites(text_rotary=(), positions=(), vision_rotary=(), text_apply=(), vision_apply=()), rule="",
    )  # fmt: skip


def is_known(name: str) -> bool:
    """Whether there is a loss to audit: a class with a head of its own, or a tiny model written for its positions."""
    return name in classes() or isinstance(discovery.family(name), Family)


def loaded(name: str) -> Family:
    """The family called ``name``. LookupError with the reason when it has no tiny model here."""
    return discovery.required(family(name))


def untaken(case: BatchCase) -> str | None:
    """Why the family of a case cannot be given its samples; None where it can, and where there is no such model."""
    found = family(case.family)
    return None if isinstance(found, str) else case.untaken(found)


def build(name: str, seed: int = 0) -> Any:
    """A tiny float32 model in eval mode. LookupError with the reason where its configuration cannot be shrunk."""
    import torch
    import transformers

    from assay.audits.families._weights import randomise

    try:
        config = shrunk(transformers.CONFIG_MAPPING[name](), **MORE.get(name, {}))
        kind = getattr(transformers, classes()[name])
        _check(kind, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = kind(config)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise LookupError(f"{name}: no tiny model of it can be made: {type(error).__name__}: {text}") from error
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return randomise(model, seed)


def _check(kind: type[Any], config: Any) -> None:
    """LookupError for a model that is not tiny, or that cannot be run on text alone."""
    import torch

    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > LARGEST:
        raise LookupError(f"{size / 1e6:.0f} million parameters are left after shrinking")
    named = inspect.signature(kind.forward).parameters.values()
    asked = [item.name for item in named if item.default is item.empty and item.kind is item.POSITIONAL_OR_KEYWORD]
    if further := sorted({*asked} - {"self", "input_ids"}):
        raise LookupError(f"its forward asks for {' and '.join(further)}")


def batch(
    model: Any,
    samples: Sequence[str | Sample],
    *,
    padding: str = "right",
    seed: int = 0,
    keys: Sequence[int] = (),
    dtype: torch.dtype | None = None,  # noqa: ARG001 - of the families with a processor, whose features have one
) -> dict[str, Any]:
    """Ids and mask of ``samples`` of text; with padding on the left also positions, for models that count so.

    What a sample holds depends on the seed and its key alone. Raises ``ValueError`` for anything but text.
    """
    import torch

    rows = [_ids(parse(sample), seed, key) for key, sample in zip(keys or range(len(samples)), samples, strict=True)]
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), length), _pad(model))
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        own = slice(length - len(row), None) if padding == "left" else slice(0, len(row))
        ids[place, own], mask[place, own] = row, 1
    made = {"input_ids": ids, "attention_mask": mask}
    taken = inspect.signature(model.forward).parameters
    if padding == "left" and "position_ids" in taken and _counts_from_zero(model):
        made["position_ids"] = positions(mask)
    return {name: value.to(model.device) for name, value in made.items() if name in taken}


def _pad(model: Any) -> int:
    """The family's own padding token: some count positions by it."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    own = getattr(config, "pad_token_id", None)
    if isinstance(own, int) and ORDINARY <= own < model.get_input_embeddings().num_embeddings:
        return own
    return VOCABULARY - 1


_FROM_ZERO: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
"""What is known of models that were asked."""


def _counts_from_zero(model: Any) -> bool:
    """Whether 0, 1, 2, ... are the positions that the model takes by itself: those of RoBERTa start after padding's."""
    import torch

    if model not in _FROM_ZERO:
        training, ids = model.training, torch.arange(1, 6, device=model.device)[None]
        with torch.no_grad():
            own = model.eval()(ids).logits
            told = model(ids, position_ids=torch.arange(5, device=model.device)[None]).logits
        model.train(training)
        _FROM_ZERO[model] = torch.equal(own, told)
    return _FROM_ZERO[model]


def positions(mask: torch.Tensor) -> torch.Tensor:
    """The place of each real token in its row, as ``generate()`` counts them; 0 before the first."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _ids(sample: Sample, seed: int, key: int) -> torch.Tensor:
    import torch

    if not all(isinstance(segment, Text) for segment in sample.segments):
        raise ValueError(f"sample {sample}: expected text alone, such as t9")
    count = sum(segment.tokens for segment in sample.segments if isinstance(segment, Text))
    return torch.randint(1, ORDINARY, (count,), generator=torch.Generator().manual_seed(1_000_003 * seed + key))
