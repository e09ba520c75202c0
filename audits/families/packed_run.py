"""Runs a tiny model of a family on samples one by one, or packed into one row, for ``packed_positions.model``.

A :class:`PackedCall` in, the logits and gradients of each sample out. It lives in the worker; the judge never imports
transformers.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from assay.audits.families.adapt import model_of
from assay.audits.families.causal import loaded
from assay.audits.families.loss_run import accepts, embedded, gradient, named, uncached
from assay.audits.families.run import captured
from assay.audits.terms import Family, Inexpressible, Outputs
from assay.reference import packed_positions
from assay.reference.mrope_rules import RULES

TOLD = ("ids", "flat", "lengths", "mask", "ones", "cached", "trainer")
"""Ways of telling a model where the samples of a row begin, see :class:`PackedCall`."""
FLASH = "flash_attention_2"
ATTENTIONS = ("default", "eager", "sdpa", "flex_attention", FLASH)
"""The attention that a family has by default is ``sdpa`` where it has that, and else ``eager``.

``flash_attention_2`` runs in bfloat16 on a GPU, where its package is installed, and nowhere else.
"""
UNDIFFERENTIATED = ("flex_attention",)
"""Attentions that have no backward pass on a CPU."""


@dataclass(frozen=True, kw_only=True)
class PackedCall:
    """What to run. ``samples`` in the notation of ``audits.families.samples``; ``keys`` say what each one holds.

    ``told`` is how the boundaries of packed samples are told; empty: the samples run one by one, as they come.

    ``ids``: position ids that restart, and no mask; with a row for the text in front where the family has several axes.
    ``flat``: one row of restarting ids for a family of several axes, as a flattening collator makes it.
    ``lengths``: as ``ids``, with all that a flattening collator can add: cumulative lengths, and the number of each
    token's sample. ``mask``: ids on the family's axes and a block-diagonal mask of four dimensions.
    ``ones``: as ``ids``, with a mask of ones. ``cached``: as ``ids``, with an empty cache, which is what most
    configurations have by default; everything else runs without. ``trainer``: as ``ids``, the cache turned off where
    transformers' ``Trainer`` does it, in the model's own configuration, and the forward told nothing.

    The samples stand in ``rows`` of equal length, in their order.

    ``gradients``: also of the loss, and of the last token of each sample (``probe:``). ``dtype``: float64, float32 or
    bfloat16, for what an attention in bfloat16 is measured by.
    """

    samples: tuple[str, ...]
    keys: tuple[int, ...]
    told: str = ""
    rows: int = 1
    attention: str = "default"
    gradients: bool = True
    seed: int = 0
    dtype: str = "float64"


def implementation(target: Mapping[str, Any]) -> PackedModel:
    """The model of ``target["family"]``, under ``target["patch"]`` if there is one."""
    return PackedModel(loaded(target["family"]), str(target.get("patch", "")))


class PackedModel:
    """A family's tiny model, one for each dtype; nothing but gradients changes between calls."""

    def __init__(self, family: Family, patch: str = "") -> None:
        """Build one, to fail early where it cannot be built."""
        self._family, self._patch = family, patch
        self._models: dict[str, Any] = {"cpu float64": self._made().double()}
        self._unpatched: PackedModel | None = None

    def _made(self) -> Any:
        return model_of(self._family, self._patch)

    def _model(self, call: PackedCall) -> Any:
        place, dtype = placed(call)
        name = f"{place} {dtype}"
        if name not in self._models:
            self._models[name] = self._made().to(place, getattr(torch, dtype))
        model = self._models[name].train()
        model.zero_grad(set_to_none=True)
        return model

    def __call__(self, call: PackedCall) -> Outputs:
        """``logits:N`` [S,V] of each sample, and with gradients ``loss``, ``inputs:N`` [S,D], ``grad:PARAMETER``.

        ``inputs`` are the gradients of the tokens' embeddings; ``probe:N`` [T] is how much the last token of a sample
        depends on each token of the row (alone: of the sample), the largest gradient of its embedding.
        :class:`Inexpressible` where the family refuses what it is told; what a patch alone refuses is raised.
        """
        model = self._model(call)
        differentiated = call.gradients and call.attention not in UNDIFFERENTIATED
        with attending(model, call.attention), torch.set_grad_enabled(differentiated), embedded(model) as seen:
            alone = [self._batch(model, call, number) for number in range(len(call.samples))]
            ids = [batch["input_ids"][0] for batch in alone]
            logits = self._packed(model, call, alone) if call.told else self._one_by_one(model, alone)
            out = {f"logits:{number}": own.detach() for number, own in enumerate(logits)}
            if differentiated:
                out |= _differentiated(model, logits, ids, seen, packed=bool(call.told))
        return {name: value.cpu() for name, value in out.items()}

    def _batch(self, model: Any, call: PackedCall, number: int) -> dict[str, Any]:
        made = self._family.batch(model, (call.samples[number],), seed=call.seed, keys=(call.keys[number],))
        return {name: value for name, value in made.items() if value is not None}

    def _one_by_one(self, model: Any, alone: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        return [model(**batch, **uncached(model)).logits[0] for batch in alone]

    def _packed(self, model: Any, call: PackedCall, alone: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        lengths = [batch["input_ids"].shape[1] for batch in alone]
        batch = in_rows({**joined(alone), **self.telling(model, call, alone)}, lengths, call.rows)
        if lacking := [name for name in ("position_ids",) if not accepts(model, name)]:
            raise Inexpressible(f"forward takes no {' and no '.join(lacking)}")
        given = {name: _on(model.device, value) for name, value in batch.items() if accepts(model, name)}
        if "attention_mask" in batch and "attention_mask" not in given:
            raise Inexpressible("forward takes no attention_mask")
        try:
            with caching(model, call.told) as cache:
                logits = model(**given, **cache).logits
        except Inexpressible:
            raise
        except Exception as error:
            if self._patch and not self._refused_unpatched(call):
                raise  # what the family can be told, its patch has to take
            text = " ".join(str(error).split())[:160]
            raise Inexpressible(f"refused: {type(error).__name__}: {text}") from error
        return list(torch.split(logits.flatten(0, 1), lengths))

    def _refused_unpatched(self, call: PackedCall) -> bool:
        """Whether the plain family refuses the call too; under a patch of its classes it is not plain, and does."""
        if self._unpatched is None:
            self._unpatched = PackedModel(self._family)
        try:
            self._unpatched(call)
        except Inexpressible:
            return True
        return False

    def telling(self, model: Any, call: PackedCall, alone: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The arguments that say where the samples begin whose batches are given."""
        lengths = [batch["input_ids"].shape[1] for batch in alone]
        text = torch.cat([torch.arange(n) for n in lengths])[None]
        axes = None if call.told == "flat" else self._axes(model, alone)
        if call.told == "flat" and not self._has_axes():
            raise Inexpressible("the family's positions have one axis: nothing is flattened")
        ids = text if axes is None else torch.cat([text[None].to(axes), axes])
        segments = packed_positions.segments_of_positions(text)
        if call.told == "mask":
            mask = packed_positions.attention_boundaries(segments, getattr(torch, call.dtype))
            return {"position_ids": text if axes is None else axes, "attention_mask": mask}
        if call.told == "ones":
            return {"position_ids": ids, "attention_mask": torch.ones_like(text)}
        if call.told == "lengths":
            ends, longest = packed_positions.cumulative_lengths(segments)
            return {
                "position_ids": ids, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest,
                "max_length_k": longest, "seq_idx": segments.int() - 1,
            }  # fmt: skip
        return {"position_ids": ids}

    def _has_axes(self) -> bool:
        return self._family.rule in RULES and RULES[self._family.rule].axes > 1

    def _axes(self, model: Any, alone: Sequence[Mapping[str, Any]]) -> Tensor | None:
        """[A,1,T]: the ids that the model makes itself for each sample; None for a family of one axis."""
        if not self._has_axes():
            return None
        count, found = RULES[self._family.rule].axes, []
        for batch in alone:
            with captured(model, self._family) as seen, torch.no_grad():
                model(**batch, **uncached(model))
            ids = seen.positions[0]
            found.append(ids[-count:] if ids.ndim == 3 else ids[None].expand(count, -1, -1))
        return torch.cat(found, dim=-1)


@contextlib.contextmanager
def caching(model: Any, told: str) -> Iterator[dict[str, bool]]:
    """What a forward is told of its cache, and the model's configuration meanwhile."""
    if told == "cached" and not accepts(model, "use_cache"):
        raise Inexpressible("forward takes no use_cache")
    if told != "trainer":
        yield {"use_cache": True} if told == "cached" else uncached(model)
        return
    before = getattr(model.config, "use_cache", None)
    model.config.use_cache = False
    try:
        yield {}
    finally:
        model.config.use_cache = before


def placed(call: PackedCall) -> tuple[str, str]:
    """The device and the dtype that a call runs in. Inexpressible where its attention cannot run here."""
    if call.attention != FLASH:
        return "cpu", call.dtype
    from transformers.utils import is_flash_attn_2_available

    if not (torch.cuda.is_available() and is_flash_attn_2_available()):
        raise Inexpressible(f"{FLASH} needs a GPU and its package, flash-attn")
    return "cuda", "bfloat16"


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def joined(alone: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of several batches of one sample: per-token tensors side by side, all others one under another.

    Masks and positions of the samples are left out.
    """
    made = {}
    for name in dict.fromkeys(name for batch in alone for name in batch):
        values = [batch[name] for batch in alone if name in batch]
        if name in {"attention_mask", "position_ids"} or not isinstance(values[0], Tensor):
            continue
        tokens = all(name in b and b[name].shape == b["input_ids"].shape for b in alone)
        made[name] = torch.cat(values, dim=1 if tokens else 0)
    return made


def in_rows(batch: Mapping[str, Any], lengths: Sequence[int], rows: int) -> dict[str, Any]:
    """The row cut into several of equal length. Inexpressible where that would cut a sample, or a mask."""
    total = sum(lengths)
    if rows == 1:
        return dict(batch)
    ends = {0, *torch.tensor(lengths).cumsum(0).tolist()}
    if total % rows or not {total // rows * row for row in range(rows)} <= ends:
        raise Inexpressible("the samples do not make rows of equal length")
    if "attention_mask" in batch and batch["attention_mask"].ndim == 4:
        raise Inexpressible("masks of four dimensions are made for one row")

    def cut(x: Any) -> Any:
        tokens = isinstance(x, Tensor) and x.ndim > 1 and x.shape[-2:] == (1, total)
        return x.reshape(*x.shape[:-2], rows, total // rows) if tokens else x

    return {name: cut(value) for name, value in batch.items()}


def _differentiated(
    model: Any, logits: list[Tensor], ids: list[Tensor], seen: list[Tensor], *, packed: bool
) -> dict[str, Tensor]:
    lengths = [len(own) for own in ids]
    inputs = _inputs(seen, lengths, packed=packed)
    probes = _probes(logits, inputs, packed=packed)
    for x in inputs:
        x.grad = None  # probes leave theirs where gradients are kept
    count = sum(lengths) - len(lengths)
    own = [cross_entropy(x[:-1], y[1:], reduction="sum") for x, y in zip(logits, ids, strict=True)]
    loss = torch.stack(own).sum() / max(count, 1)
    if loss.requires_grad:
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    rows = [(torch.zeros_like(x) if x.grad is None else x.grad).flatten(0, 1) for x in inputs]
    rows = list(torch.split(rows[0], lengths)) if packed else rows
    return {
        "loss": loss.detach(),
        **{f"inputs:{number}": own.detach().clone() for number, own in enumerate(rows)},
        **{f"grad:{name}": gradient(parameter) for name, parameter in named(model)},
        **probes,
    }


def _inputs(seen: list[Tensor], lengths: list[int], *, packed: bool) -> list[Tensor]:
    """The embeddings of the row, or of each sample. Inexpressible where the model embeds in a way of its own."""
    wanted = [sum(lengths)] if packed else lengths
    found, rest = [], iter(seen)
    for length in wanted:
        own = next((x for x in rest if x.ndim == 3 and x.shape[0] * x.shape[1] == length), None)
        if own is None:
            raise Inexpressible("its embeddings are not those of the tokens alone")
        found.append(own)
    return found


def _probes(logits: list[Tensor], inputs: list[Tensor], *, packed: bool) -> dict[str, Tensor]:
    """``probe:N``: how the last token of each sample depends on all tokens of the row, or of the sample alone."""
    found = {}
    for number, own in enumerate(logits):
        row = inputs[0 if packed else number]
        weights = torch.linspace(-1, 1.5, own.shape[-1], dtype=own.dtype)
        (grad,) = torch.autograd.grad((own[-1] * weights).sum(), row, retain_graph=True, allow_unused=True)
        found[f"probe:{number}"] = (
            (torch.zeros_like(row) if grad is None else grad).flatten(0, 1).detach().abs().amax(-1)
        )
    return found


@contextlib.contextmanager
def attending(model: Any, attention: str) -> Iterator[None]:
    """The model with an attention. Inexpressible where the family lacks it. Nothing is compiled: that takes minutes."""
    if attention == "default":
        yield
        return
    before = _attention(model)
    try:
        model.set_attn_implementation(attention)
    except Exception as error:
        raise Inexpressible(f"the family has no {attention} attention") from error
    try:
        if _attention(model) != attention:
            raise Inexpressible(f"the family has no {attention} attention")
        with _uncompiled() if attention == "flex_attention" else contextlib.nullcontext():
            yield
    finally:
        model.set_attn_implementation(before)


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Nothing is compiled, and nobody says that it would be faster."""
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        yield


def _attention(model: Any) -> str:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return str(config._attn_implementation)  # noqa: SLF001 - there is no public name for it
