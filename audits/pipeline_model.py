"""One run of a pipeline's model on a batch: the loss, a score for each token, the positions that were really used."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.patch_runs import as_bytes
from assay.audits.terms import Inexpressible, Outputs

ROWS = 512
"""Tokens whose probabilities are computed together: a vocabulary is wide."""
_VISION = ("vision", "visual", "audio")


def accepted(model: nn.Module, name: str) -> bool:
    """Whether the forward can be handed an argument, by name or among the rest."""
    found = _parameters(model)
    return name in found or any(item.kind is inspect.Parameter.VAR_KEYWORD for item in found.values())


def refused(model: nn.Module, batch: Mapping[str, Any]) -> list[str]:
    """The keys of a batch that the forward does not take."""
    return sorted(str(name) for name in batch if not accepted(model, str(name)))


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """Of the forward that is called: a wrapper's own, or that of an instance that was patched."""
    return inspect.signature(model.forward).parameters


Step = Callable[[nn.Module, dict[str, Any], "Asked"], Tensor | None]
"""From a model, a batch and what is asked to the loss, with its graph."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How to run a model: ``items`` as ``num_items_in_batch`` (0: without), with ``gradients``, in ``training`` mode.

    ``steps`` is of how many micro-batches the step of an optimiser is that the batch is one of.
    """

    items: int = 0
    steps: int = 1
    gradients: bool = False
    training: bool = False


def plain_step(model: nn.Module, given: dict[str, Any], asked: Asked) -> Tensor | None:
    """The loss that the model's own forward returns."""
    more = {"num_items_in_batch": torch.tensor(asked.items)} if asked.items else {}
    return _told(model(**given, **more), "loss")


def forward(model: nn.Module, batch: Mapping[str, Any], asked: Asked, step: Step = plain_step) -> Outputs:
    """One forward with what the model takes of the batch, the cache turned off as ``Trainer`` does it.

    ``scores`` [B,S]: the log-probability of the next token of the row, 0 at the last; ``targets`` [B,S]: that of the
    next label; ``spread`` [B,S]: the mean over the vocabulary. ``loss`` where there are labels. ``rounded``: the share
    of logits that half precision can hold, ``drawn``: whether a generator was drawn from. ``positions`` [A,B,S] where a
    rotary module could be watched. With ``gradients``: ``grads`` [P,2], for each parameter its gradient's product with
    a fixed random tensor, and its norm, and ``unreached``, JSON as bytes: parts that were called and have none.
    """
    given = _given(model, batch)
    model.zero_grad(set_to_none=True)
    state = torch.get_rng_state()
    with in_mode(model, training=asked.training), as_trainer(model):
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(asked.gradients))
            seen = stack.enter_context(watched(model))
            said = stack.enter_context(answered(model))
            parts = stack.enter_context(called(model))
            loss = step(model, dict(given), asked)
        drawn = not torch.equal(state, torch.get_rng_state())
        logits = next((found for one in said if (found := _told(one, "logits")) is not None), None)
        if logits is None:
            logits = _without_labels(model, given)
    out = _scored(logits.detach(), given) | {"drawn": torch.tensor([drawn])} | _added(model, said)
    if loss is not None:
        out["loss"] = loss.detach().double().reshape(1)
        if asked.gradients:
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            out["grads"] = _projected(model)
            out["unreached"] = as_bytes(sorted(name for name, part in parts.items() if unreached(part)))
    return out | ({"positions": seen[0]} if seen else {})


def _added(model: nn.Module, said: list[Any]) -> dict[str, Tensor]:
    """``added``: what a mixture of experts adds to its loss, to use all of them; not a number where nobody says."""
    told = next((found for one in said if (found := _told(one, "aux_loss")) is not None), None)
    if told is None:
        return {}
    configs = [config, getattr(config, "text_config", None)] if (config := getattr(model, "config", None)) else []
    weight = next((found for one in configs if (found := getattr(one, "router_aux_loss_coef", None)) is not None), None)
    return {"added": told.detach().double().reshape(1) * (float("nan") if weight is None else float(weight))}


def _without_labels(model: nn.Module, given: Mapping[str, Any]) -> Tensor:
    """The logits of a model that makes none where it makes a loss."""
    with torch.no_grad():
        found = _told(model(**{name: value for name, value in given.items() if "labels" not in name}), "logits")
    if found is None:
        raise Inexpressible("the model's forward returns no logits")
    return found


def _scored(logits: Tensor, given: Mapping[str, Any]) -> dict[str, Tensor]:
    ids = given["input_ids"]
    out = {"scores": scores(logits, ids), "rounded": torch.tensor([rounded(logits)])}
    wanted = given.get("shift_labels")
    if isinstance(wanted, Tensor) and wanted.shape == ids.shape:
        wanted = torch.cat([wanted[..., :1], wanted[..., :-1]], dim=-1)
    else:
        wanted = given.get("labels")
    if isinstance(wanted, Tensor) and wanted.shape == ids.shape:
        known = (wanted >= 0) & (wanted < logits.shape[-1])
        out["targets"] = scores(logits, torch.where(known, wanted, 0)).masked_fill(~_next(known), 0.0)
        out["spread"] = scores(logits, None).masked_fill(~_next(known), 0.0)
        out["trained"] = _next(known)
    return out


def _next(known: Tensor) -> Tensor:
    """Where the next entry of a row [...,S] is known, as [B,S]."""
    rows = known.reshape(-1, known.shape[-1])
    return torch.cat([rows[:, 1:], torch.zeros_like(rows[:, :1])], dim=1).cpu()


def rounded(logits: Tensor) -> float:
    """The share of logits, those that are zero or infinite left out, that bfloat16 or float16 can hold exactly."""
    rows = logits.reshape(-1, logits.shape[-1])[:ROWS]
    kept = rows[torch.isfinite(rows) & (rows != 0)].double()
    if not kept.numel():
        return 0.0
    return max(float((kept.to(half).double() == kept).double().mean()) for half in (torch.bfloat16, torch.float16))


def _told(answer: Any, name: str) -> Tensor | None:
    """A part of what a forward returned, by key or by attribute."""
    found = answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
    return found if isinstance(found, Tensor) else None


def _given(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    first = next(model.parameters())
    given = {name: value for name, value in batch.items() if value is not None and accepted(model, name)}
    for name, value in given.items():
        if isinstance(value, Tensor):
            wide = first.dtype if value.is_floating_point() and not name.startswith("second") else value.dtype
            given[name] = value.to(device=first.device, dtype=wide)
    return given


def scores(logits: Tensor, ids: Tensor | None) -> Tensor:
    """The log-probability [B,S] of each next token, in float64; 0 at the last of a row.

    Without ``ids`` the mean over the vocabulary.
    """
    logits = logits.reshape(-1, *logits.shape[-2:])
    rows = None if ids is None else ids.reshape(-1, ids.shape[-1])
    out = torch.zeros(logits.shape[:2], dtype=torch.float64)
    for row in range(len(logits)):
        for start in range(0, logits.shape[1] - 1, ROWS):
            stop = min(start + ROWS, logits.shape[1] - 1)
            wide = logits[row, start:stop].double().log_softmax(-1)
            told = wide.mean(-1) if rows is None else wide.gather(-1, rows[row, start + 1 : stop + 1, None])[:, 0]
            out[row, start:stop] = told.cpu()
    return out


def _projected(model: nn.Module) -> Tensor:
    """[P,2]; a sum of gradients has the sum of their products."""
    found = []
    for place, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
        if parameter.grad is None:
            found.append((0.0, 0.0))
            continue
        draw = torch.Generator().manual_seed(place)
        grad = parameter.grad.detach().double().cpu()
        direction = torch.randn(grad.shape, generator=draw, dtype=torch.float64)
        found.append((float((grad * direction).sum()), float(grad.norm())))
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 2)


@contextlib.contextmanager
def as_trainer(model: nn.Module) -> Iterator[None]:
    """With ``use_cache`` off in the model's configuration, and left as it is in that of its parts.

    Experts are computed one by one: the product that does them at once is not made for float64.
    """
    config = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    grouped: list[Any] = [held for module in model.modules() if _at_once(held := vars(module).get("config"))]
    if config is not None:
        config.use_cache = False
    for held in grouped:
        held._experts_implementation = "eager"  # noqa: SLF001 - transformers has no public name for it in a configuration
    try:
        yield
    finally:
        if config is not None:
            config.use_cache = before
        for held in grouped:
            held._experts_implementation = "grouped_mm"  # noqa: SLF001 - as above


def _at_once(config: Any) -> bool:
    return getattr(config, "_experts_implementation", None) == "grouped_mm"


_DRAWS = ("drop", "jitter")
"""In names of settings: what is drawn in training. Modules and their parts keep it as a number."""


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Eval mode, or training mode without what is drawn there, statistics of batches as in eval mode. Put back."""
    before = [(module, module.training) for module in model.modules()]
    settings = list(_drawing(model)) if training else []
    model.train(training)
    for module, name, value in settings:
        setattr(module, name, type(value)(0))
    for module, _ in before:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - torch's only name for all of them
            module.train(False)
    try:
        yield
    finally:
        for module, name, value in settings:
            setattr(module, name, value)
        for module, mode in before:
            module.training = mode


def _drawing(model: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    for module in model.modules():
        for owner in filter(None, (module, vars(module).get("config"))):
            names = [name for name, value in vars(owner).items() if isinstance(value, float)]
            yield from ((owner, name, getattr(owner, name)) for name in names if any(word in name for word in _DRAWS))
        if isinstance(module, nn.modules.dropout._DropoutNd):  # noqa: SLF001 - torch's only name for all of them
            yield module, "p", module.p


@contextlib.contextmanager
def called(model: nn.Module) -> Iterator[dict[str, nn.Module]]:
    """The large parts of a model that are called, by their names: its children, and theirs."""
    found: dict[str, nn.Module] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, _args: found.update({name: module})

    parts = [(name, part) for name, part in model.named_modules() if name and name.count(".") < DEEP]
    handles = [part.register_forward_pre_hook(note(name)) for name, part in parts]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


DEEP = 2
"""How many names a part of a model has that is looked at for gradients: towers and decoders, no single layers."""


def unreached(part: nn.Module) -> bool:
    """Whether parameters of a part are to be trained and none of them has a gradient."""
    trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
    return bool(trained) and all(parameter.grad is None for parameter in trained)


@contextlib.contextmanager
def answered(model: nn.Module) -> Iterator[list[Any]]:
    """What the model's forward returns, one entry for each of its calls, by whoever it is called."""
    said: list[Any] = []
    handle = model.register_forward_hook(lambda _module, _args, answer: said.append(answer))
    try:
        yield said
    finally:
        handle.remove()


class _Enough(Exception):
    """Ends a forward that has shown its positions."""


def used_positions(model: nn.Module, batch: Mapping[str, Any], step: Step = plain_step) -> Outputs:
    """``positions`` alone, as of :func:`forward`: the run ends where the decoder is told them."""
    modes = in_mode(model, training=False), as_trainer(model)
    with torch.no_grad(), contextlib.suppress(_Enough), modes[0], modes[1], watched(model, enough=True) as seen:
        step(model, _given(model, batch), Asked())
    return {"positions": seen[0]} if seen else {}


@contextlib.contextmanager
def watched(model: nn.Module, *, enough: bool = False) -> Iterator[list[Tensor]]:
    """The ``position_ids`` [A,B,S] that reach the decoder's rotary modules, one entry for each of their calls.

    ``enough``: the first one ends the run.
    """
    seen: list[Tensor] = []

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("position_ids", args[1] if len(args) > 1 else None)
        if isinstance(ids, Tensor) and ids.ndim in {2, 3}:
            seen.append(ids.detach().clone().reshape(-1, *ids.shape[-2:]))
            if enough:
                raise _Enough

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in rotaries(model)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def rotaries(model: nn.Module) -> list[nn.Module]:
    """The rotary modules of the language model: by their class names and their argument ``position_ids``."""
    found = []
    for name, module in model.named_modules():
        where = f"{name} {type(module).__name__}".lower()
        decoder = "rotary" in where and not any(word in where for word in _VISION)
        if decoder and "position_ids" in inspect.signature(module.forward).parameters:
            found.append(module)
    return found
