"""Runs a tiny model of a family forward and backward with labels, for ``masked_loss.model``.

A :class:`LossCall` in, the loss and every parameter's gradient out. It lives in the worker; the judge never imports
transformers.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from assay.audits.families.adapt import model_of
from assay.audits.families.causal import loaded
from assay.audits.families.run import placeholders
from assay.audits.terms import Family, Inexpressible, Outputs

IGNORED = -100
PADS = (7, 11, 5)
"""Ordinary text where padding stands: what is masked must not be known by its id."""


@dataclass(frozen=True, kw_only=True)
class LossCall:
    """What to run. ``samples`` in the notation of ``audits.families.samples``; ``keys`` say what each one holds.

    ``labels``: ``answers`` (a prompt in front of some, see :func:`trained`), ``none`` (nothing is trained on), ``one``
    (the last token but one of each sample). ``items`` is ``num_items_in_batch``, ``extra`` how many columns of padding
    are added. ``form``: ``labels``, or ``shift_labels`` for the batch without its last column, whose target is handed
    over beside it, as on a rank of context parallelism. ``by``: the ``model``'s own loss, or the ``reference``'s on its
    logits. ``train`` is the mode; without ``gradients`` the loss alone is asked for. ``dtype`` is float64 or float32.
    """

    samples: tuple[str, ...]
    keys: tuple[int, ...] = ()
    padding: str = "right"
    extra: int = 0
    labels: str = "answers"
    items: int | None = None
    form: str = "labels"
    by: str = "model"
    train: bool = True
    gradients: bool = True
    seed: int = 0
    dtype: str = "float64"


def implementation(target: Mapping[str, Any]) -> LossModel:
    """The model of ``target["family"]``, under ``target["patch"]`` if there is one."""
    return LossModel(loaded(target["family"]), str(target.get("patch", "")))


class LossModel:
    """A family's tiny model, one for each dtype. Equal weights in all; nothing but gradients changes between calls."""

    def __init__(self, family: Family, patch: str = "") -> None:
        """Build one, to fail early where it cannot be built."""
        self._family, self._patch = family, patch
        self._models: dict[str, Any] = {"float64": self._made().double()}

    def _made(self) -> Any:
        return model_of(self._family, self._patch)

    def _model(self, call: LossCall) -> Any:
        if call.dtype not in self._models:
            self._models[call.dtype] = self._made().to(getattr(torch, call.dtype))
        model = self._models[call.dtype].train(call.train)
        model.zero_grad(set_to_none=True)
        return model

    def __call__(self, call: LossCall) -> Outputs:
        """``loss``, ``logits`` [B,S,V], ``labels`` and ``attention_mask`` [B,S], and ``grad:PARAMETER`` of each.

        ``reach:inputs`` [B,S] is the largest gradient of each token's embedding. Inexpressible where the forward
        refuses an argument that the call needs.
        """
        model = self._model(call)
        batch = self._batch(model, call)
        labels = trained(batch, call, placeholders(model.config, model.get_input_embeddings().num_embeddings))
        facts = {"labels": labels, "attention_mask": batch["attention_mask"].clone()}
        with torch.set_grad_enabled(call.gradients), embedded(model) as seen:
            loss, logits = own_loss(model, batch, labels, call) if call.by == "model" else by_reference(
                model, batch, labels, call
            )  # fmt: skip
            if call.gradients and loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        grads = {f"grad:{name}": gradient(parameter) for name, parameter in named(model)} if call.gradients else {}
        own = {"reach:inputs": seen[0].grad.detach().abs().amax(-1)} if seen and seen[0].grad is not None else {}
        return {**facts, "loss": loss.detach(), "logits": logits.detach(), **grads, **own}

    def _batch(self, model: Any, call: LossCall) -> dict[str, Any]:
        made = self._family.batch(model, call.samples, padding=call.padding, seed=call.seed, keys=call.keys)
        batch = {name: value for name, value in made.items() if value is not None}
        batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
        return widened(batch, call, by_id=self._counts_by_id(batch, call)) if call.extra else batch

    def _counts_by_id(self, batch: Mapping[str, Any], call: LossCall) -> bool:
        """Whether a model of text has nothing but ids to count positions by, as RoBERTa does."""
        return call.padding == "left" and not self._family.rule and "position_ids" not in batch


def named(model: Any) -> list[tuple[str, Any]]:
    """The parameters that are trained, tied ones once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def gradient(parameter: Any) -> Tensor:
    """A parameter's gradient; zeros where the loss does not reach it."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()


def trained(batch: Mapping[str, Tensor], call: LossCall, special: list[int]) -> Tensor:
    """Labels [B,S] as a collator makes them: ids where they are trained on, else the ignore index.

    Samples with an even key are trained on whole, their first token included, which nothing predicts; the others on
    their second half. Padding and the placeholders of images never are. With padding in front a first token has a
    position before it, which every family takes for its predictor: there it is not trained on.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    place = mask.long().cumsum(-1) - 1
    length = mask.sum(-1, keepdim=True)
    keys = torch.tensor(call.keys or range(len(ids)))[:, None].to(ids.device)
    first = torch.where(keys % 2 == 1, length // 2, 0).clamp(min=int(call.padding == "left"))
    kept = mask & (place >= first) & ~torch.isin(ids, torch.tensor(special, device=ids.device))
    if call.labels == "one":
        kept = mask & (place == length - 2)
    elif call.labels == "none":
        kept = torch.zeros_like(mask)
    return ids.masked_fill(~kept, IGNORED)


def widened(batch: Mapping[str, Any], call: LossCall, *, by_id: bool = False) -> dict[str, Any]:
    """The batch with ``extra`` columns of padding on its side, which hold the ids of ordinary words.

    ``by_id``: that of the batch's own padding, for models that know it by nothing else.
    """
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    pads = torch.tensor(PADS, device=ids.device)[torch.arange(len(ids) * call.extra, device=ids.device) % len(PADS)]
    if by_id and not bool(real.all()):
        pads = ids[~real][:1].expand_as(pads)
    grown = dict(batch)
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            more = pads.view(len(ids), -1) if name == "input_ids" else value.new_zeros(len(ids), call.extra)
            grown[name] = torch.cat([value, more] if call.padding == "right" else [more, value], dim=1)
    return grown


def own_loss(model: Any, batch: Mapping[str, Any], labels: Tensor, call: LossCall) -> tuple[Tensor, Tensor]:
    """What the model's forward returns for these labels, in the form of the call."""
    given = dict(batch)
    asked: dict[str, Any] = {} if call.items is None else {"num_items_in_batch": torch.tensor(call.items)}
    wanted = labels if shifts(model) else shifted(labels)
    if call.form == "shift_labels":
        asked["shift_labels"] = labels[:, 1:].contiguous()
        given = {name: value[:, :-1] if per_token(value, labels) else value for name, value in batch.items()}
        wanted = wanted[:, :-1].contiguous()
    if lacking := [name for name in asked if not accepts(model, name)]:
        raise Inexpressible(f"forward takes no {' and no '.join(lacking)}")
    answer = model(**given, labels=wanted, **asked, **uncached(model))
    if answer.logits is None:  # a fused loss stores none
        return answer.loss, logits_of(model, given)
    return answer.loss, answer.logits


def by_reference(model: Any, batch: Mapping[str, Any], labels: Tensor, call: LossCall) -> tuple[Tensor, Tensor]:
    """The specification's loss on the logits that the model gives without labels: one shift, the asked divisor."""
    from assay.reference import masked_loss

    logits = logits_of(model, batch, gradients=call.gradients)
    return masked_loss.cross_entropy(logits, labels, shift=True, normaliser=call.items).value, logits


def logits_of(model: Any, batch: Mapping[str, Any], *, gradients: bool = False) -> Tensor:
    """The logits of a forward without labels."""
    with torch.set_grad_enabled(gradients):
        logits: Tensor = model(**batch, **uncached(model)).logits
    return logits


def shifted(labels: Tensor) -> Tensor:
    """Labels moved to the positions that predict them, for a family that documents that it does not shift them."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED)], dim=1)


def per_token(value: Any, labels: Tensor) -> bool:
    """Whether an argument has one entry for each token."""
    return isinstance(value, Tensor) and value.shape == labels.shape


def accepts(model: Any, name: str) -> bool:
    """Whether a forward can be handed an argument, by name or among the rest."""
    found = inspect.signature(type(model).forward).parameters
    return name in found or any(item.kind is inspect.Parameter.VAR_KEYWORD for item in found.values())


def uncached(model: Any) -> dict[str, bool]:
    """Without a cache, where the forward knows of one: hybrid models cannot make one for the shape of a tiny model."""
    return {"use_cache": False} if accepts(model, "use_cache") else {}


def shifts(model: Any) -> bool:
    """Whether the family shifts labels itself. Decoders of the BART kind document that they do not."""
    return "labels are **not shifted**" not in " ".join((type(model).forward.__doc__ or "").split())


@contextlib.contextmanager
def embedded(model: Any) -> Iterator[list[Tensor]]:
    """Collects what the input embedding gives, with its gradient kept."""
    seen: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
            seen.append(output)

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
