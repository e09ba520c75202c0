"""What a guard has to know of a model: what is inside its wrappers, its large parts, samples of its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.families.loss_run import shifts
from assay.audits.pipeline_facts import facts
from assay.audits.pipeline_model import DEEP, rotaries
from assay.audits.pipelines import Pipeline
from assay.reference.mrope_rules import RULES

PLACES = 8
"""Elements of each parameter that are compared before and after a step."""
_WRAPPED = ("module", "_fsdp_wrapped_module")
_FOREIGN = ("vision", "visual", "audio")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model of a family inside of what compiles it, distributes it or adds adapters to it."""
    while True:
        children = dict(model.named_children())
        inner = children.get("_orig_mod")
        if inner is None and len(children) == 1:
            inner = next((children[name] for name in _WRAPPED if name in children), None)
        if inner is None and callable(getattr(model, "get_base_model", None)):
            reach: Any = model
            base = reach.get_base_model()
            inner = base if base is not model else None
        if inner is None:
            return _configured(model)
        model = inner


def _configured(model: nn.Module) -> nn.Module:
    """The outermost module with a configuration, of several one that writes: somebody's own may be around them."""
    named = [part for part in model.modules() if hasattr(getattr(part, "config", None), "model_type")]
    return next((part for part in named if writes(part)), named[0] if named else model)


def writes(model: nn.Module) -> bool:
    """Whether a model of transformers predicts the next token, and so shifts labels itself."""
    asked: Any = getattr(model, "can_generate", None)
    return callable(asked) and bool(asked())


def scattered(model: nn.Module) -> bool:
    """Whether a batch is split over several devices of this process."""
    return isinstance(model, nn.DataParallel) and len(model.device_ids) > 1


def named_parameters(model: nn.Module, inner: nn.Module) -> dict[str, nn.Parameter]:
    """Those of the model inside by their names, and behind them those of what is around it: heads, prompts."""
    own = dict(inner.named_parameters())
    known = {id(parameter) for parameter in own.values()}
    around = ((name, one) for name, one in model.named_parameters() if id(one) not in known)
    return own | {f"around.{name}": one for name, one in around}


def compiled(model: nn.Module) -> bool:
    """Whether a model, or what is inside its wrappers, is compiled as a whole: no hook is run in there."""
    inner = (model, unwrapped(model))
    return any("_orig_mod" in dict(part.named_children()) or part._compiled_call_impl is not None for part in inner)  # noqa: SLF001 - torch has no public word for it


@dataclass(frozen=True)
class Places:
    """The modules that are watched in a checked step."""

    outer: tuple[nn.Module, ...]
    rotaries: tuple[nn.Module, ...]
    attention: nn.Module | None
    projector: nn.Module | None
    parts: dict[str, nn.Module]


def places(model: nn.Module) -> Places:
    """Where to look in a model, whatever it is wrapped in."""
    inner = unwrapped(model)
    return Places(
        outer=tuple({id(part): part for part in (model, inner)}.values()),
        rotaries=tuple(rotaries(inner)),
        attention=_attention(inner),
        projector=next((part for name, part in inner.named_modules() if name.endswith("multi_modal_projector")), None),
        parts=parts(inner),
    )


def parts(inner: nn.Module) -> dict[str, nn.Module]:
    """The large parts of a model by their names: its children, and theirs."""
    return {name: part for name, part in inner.named_modules() if name and name.count(".") < DEEP}


def _attention(inner: nn.Module) -> nn.Module | None:
    """The first attention of the decoder."""
    named: dict[str, nn.Module] = dict(inner.named_modules())
    for name, part in named.items():
        where = f"{name} {type(part).__name__}".lower()
        if type(part).__name__.endswith("Attention") and not any(word in where for word in _FOREIGN):
            return part
    return None


def told_of(inner: nn.Module, processor: Any) -> dict[str, Any]:
    """The facts of ``audits.pipeline_facts`` as JSON, and how the family takes labels."""
    config = getattr(inner, "config", None)
    tokenizer = getattr(processor, "tokenizer", processor)
    found = dataclasses.asdict(facts(Pipeline(dataset=(), model=inner, processor=processor, tokenizer=tokenizer)))
    if found["pad"] is None:
        inside = getattr(config, "text_config", None)
        ids = (getattr(part, "pad_token_id", None) for part in (config, inside) if part is not None)
        found["pad"] = next((pad for pad in ids if isinstance(pad, int)), None)
    # The part of an Omni model that reads is numbered as the whole is.
    name = str(getattr(config, "model_type", ""))
    found["rule"] = found["rule"] or (whole if (whole := name.removesuffix("_thinker")) in RULES else "")
    return found | {
        "shifts": shifts(inner)
        and not getattr(config, "is_encoder_decoder", False)
        and (writes(inner) or not hasattr(inner, "can_generate")),
        "writes": writes(inner),
        "stops": sorted(_stops(config)),
        "family": name,
        "class": type(inner).__name__,
    }


def _stops(config: Any) -> set[int]:
    """Tokens that end a text, by the configuration."""
    named = (getattr(part, "eos_token_id", None) for part in (config, getattr(config, "text_config", None)))
    held = (one if isinstance(one, (list, tuple)) else [one] for one in named)
    return {one for several in held for one in several if isinstance(one, int)}


@dataclass(frozen=True)
class Sample:
    """A few elements of each of several tensors, in one tensor for each device and dtype.

    ``places`` are, for each tensor, the number of its group and where it lies in there; None where it has no elements.
    """

    groups: tuple[Tensor, ...]
    places: tuple[tuple[int, int, int] | None, ...]

    def told(self, groups: Sequence[Tensor], number: int) -> list[list[float]]:
        """The elements of each of ``number`` tensors, of the ``groups`` as they came to the CPU."""
        held = [group.tolist() for group in groups]
        own = [[] if place is None else held[place[0]][place[1] : place[2]] for place in self.places]
        return own or [[] for _ in range(number)]


def sample(tensors: Iterable[Tensor | None]) -> Sample:
    """Evenly spread elements of tensors, copied. Nothing is waited for; what has no memory here has no elements."""
    held: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    ends: dict[tuple[torch.device, torch.dtype], int] = {}
    found: list[tuple[int, int, int] | None] = []
    for tensor in tensors:
        own = None if tensor is None else _spread(tensor)
        if own is None:
            found.append(None)
            continue
        kind = own.device, own.dtype
        held.setdefault(kind, []).append(own)
        start = ends.get(kind, 0)
        ends[kind] = start + own.shape[0]
        found.append((list(held).index(kind), start, ends[kind]))
    return Sample(tuple(torch.cat(pieces) for pieces in held.values()), tuple(found))


def local(tensor: Tensor) -> Tensor:
    """This process's own part of a tensor that is spread over several."""
    own = tensor.detach()
    found: Tensor = own.to_local() if hasattr(own, "to_local") else own
    return found


def _spread(tensor: Tensor) -> Tensor | None:
    own = local(tensor)
    if own.layout != torch.strided or own.is_meta or not own.numel() or not own.is_floating_point():
        return None
    flat = own.view(-1) if own.is_contiguous() else own.reshape(-1)
    return flat[:: max(1, flat.numel() // PLACES)][:PLACES]


def largest(gradients: Sequence[Tensor]) -> Tensor:
    """The largest magnitude of each gradient, float32 [N] on the first one's device; not a number where one is not."""
    tops = torch._foreach_norm(list(gradients), ord=float("inf"))  # noqa: SLF001 - as clip_grad_norm_ does it
    return torch.stack([top.float().to(tops[0].device) for top in tops])


def rates(optimizers: Iterable[Any]) -> Iterator[tuple[Tensor, Any]]:
    """Each parameter of some optimisers with its learning rate, which may be a tensor, or None."""
    for optimizer in optimizers:
        for group in getattr(optimizer, "param_groups", ()):
            yield from ((parameter, group.get("lr")) for parameter in group.get("params", ()))
