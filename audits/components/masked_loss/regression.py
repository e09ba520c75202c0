"""``masked_loss.regression``: the loss of a predicted feature against its target, as JEPA trainers use it.

Letters: B batch, M predicted tokens, T tokens of the target's grid, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from torch import Tensor

from assay.audits.candidates import of_function, of_reference
from assay.audits.components.masked_loss import tokens
from assay.audits.fields import Amount, Count, Positive, Size, one_of
from assay.audits.laws.limits import row_reach
from assay.audits.strategies import st
from assay.audits.terms import Form, Numeric, Operation, Outputs
from assay.reference import masked_loss

NAME = "masked_loss.regression"
KINDS = masked_loss.KINDS


@dataclass(frozen=True, kw_only=True)
class Inputs(tokens.Rows):
    """``prediction`` [B,M,D]; ``target`` [B,M,D], or the whole grid [B,T,D] with ``indices`` [B,M] int64 into it.

    ``mask`` bool [B,M], or [B,M,D] for one entry per element: True where the loss is taken. A padded index is not
    to be read. ``weight`` [B,M] float32 or None. ``normaliser``: the divisor of the mean, None for the number of
    scored entries (elements; tokens for cosine), each times its weight.
    """

    ROWS: ClassVar[str] = "prediction"
    PER_SAMPLE: ClassVar[tuple[str, ...]] = ("prediction", "target", "mask", "indices", "weight")

    prediction: Tensor
    target: Tensor
    mask: Tensor
    indices: Tensor | None
    weight: Tensor | None
    kind: str
    beta: float
    power: float
    normalise_target: bool
    reduction: str
    normaliser: float | None

    def scored(self) -> Tensor:
        """The mask."""
        return self.mask

    def amount(self) -> float:
        """Scored entries, each times its weight."""
        weight = 1.0 if self.weight is None else self.weight.double()
        if self.weight is not None and self.mask.ndim > self.weight.ndim:
            weight = self.weight.double()[..., None]
        entries = float((self.mask * weight).sum())
        per_token = self.mask.ndim == self.prediction.ndim or self.kind == "cosine"
        return entries if per_token else entries * self.prediction.shape[-1]

    def appended(self, count: int) -> Self:
        """More predictions, none of them scored; their indices point to the first token of the grid."""
        longer = {name: getattr(self, name) for name in ("prediction", "mask", "indices", "weight")}
        if self.indices is None:
            longer["target"] = self.target
        grown = {name: tokens.longer(x, count, 0) for name, x in longer.items() if x is not None}
        grid = {} if self.indices is None else {"target": tokens.longer(self.target, 0, 0.5)}
        return self.but(**grown, **grid)

    def emptied(self) -> Self:
        """The record with nothing scored."""
        return dataclasses.replace(self, mask=torch.zeros_like(self.mask))


@dataclass(frozen=True, kw_only=True)
class Case:
    """Parameters of a case. ``grid`` > 0: the target is a grid of so many tokens that indices point into.

    ``by`` is token or element: what the mask has one entry for. ``near`` shrinks the differences.
    """

    seed: Count = 0
    batch: Count = 2
    length: Size = 6
    features: Size = 17
    grid: Count = 0
    kind: Annotated[str, one_of(KINDS)] = "smooth_l1"
    beta: Positive = 1.0
    power: Positive = 2.0
    normalise_target: bool = False
    by: Annotated[str, one_of(("token", "element"))] = "token"
    masked: Annotated[str, one_of(tokens.MASKED)] = "some"
    weighted: bool = False
    near: Amount = 1.0
    reduction: Annotated[str, one_of(masked_loss.REDUCTIONS)] = "mean"
    normaliser: Positive | None = None


def build(case: Case, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The inputs of a case, from its own generator; padded indices point to token 0."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.batch, case.length, case.features)
    mask = _mask(case, generator)
    indices = _indices(case, mask, generator) if case.grid else None
    target = torch.randn((case.batch, case.grid or case.length, case.features), generator=generator) * 1.5 + 0.5
    own = target if indices is None else target.gather(1, indices[..., None].expand(shape))
    prediction = own + torch.randn(shape, generator=generator) * case.near
    weight = torch.rand(shape[:2], generator=generator) * 2 + 0.125 if case.weighted else None
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return Inputs(
        prediction=prediction.to(device, dtype),
        target=target.to(device, dtype),
        mask=mask.to(device),
        indices=None if indices is None else indices.to(device),
        weight=None if weight is None else weight.to(device, wide),
        kind=case.kind,
        beta=case.beta,
        power=case.power,
        normalise_target=case.normalise_target,
        reduction=case.reduction,
        normaliser=case.normaliser,
    )


def supports(case: Case) -> str | None:
    """Whether one entry of the mask for each element means something: not where an element is seen with others."""
    whole = "normalised targets" if case.normalise_target else "cosine" if case.kind == "cosine" else ""
    return f"{whole}: the mask has one entry for each token" if whole and case.by == "element" else None


def _mask(case: Case, generator: torch.Generator) -> Tensor:
    shape = (case.batch, case.length) if case.by == "token" else (case.batch, case.length, case.features)
    if case.masked == "ragged":  # as collated: each sample has its own number of predicted tokens, padded at the end
        count = torch.randint(0, case.length + 1, (case.batch, 1), generator=generator)
        return torch.arange(case.length) < count
    keep = {"some": 2 / 3, "all": 0.0, "none": 2.0, "one": 0.0}[case.masked]
    mask = torch.rand(shape, generator=generator) < keep
    if case.masked in {"some", "one"}:
        mask.view(-1)[-1:] = True
    return mask


def _indices(case: Case, mask: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.rand((case.batch, max(case.grid, case.length)), generator=generator).argsort(1)[:, : case.length]
    valid = mask if mask.ndim == drawn.ndim else mask.any(-1)
    return torch.where(valid, drawn % case.grid, 0)


def arguments(inputs: Inputs) -> dict[str, Any]:
    """The options of the loss, by their names in the reference."""
    own = {"smooth_l1": ("beta",), "power": ("power",)}.get(inputs.kind, ())
    names = ("kind", *own, "normalise_target", "indices", "weight", "reduction", "normaliser")
    return {name: getattr(inputs, name) for name in names}


def reference(inputs: Inputs) -> Outputs:
    """The specification, in whatever dtype the prediction has."""
    found = masked_loss.masked_regression(inputs.prediction, inputs.target, inputs.mask, **arguments(inputs))
    return {"loss": found.value}


def eager(inputs: Inputs) -> Outputs:
    """The ordinary form: PyTorch's element-wise losses in the dtype of the prediction, then a masked sum."""
    target = gathered(inputs)
    if inputs.normalise_target:
        target = torch.nn.functional.layer_norm(target, target.shape[-1:])
    mask = inputs.mask
    entries = elementwise(inputs, inputs.prediction, target)
    mask = mask[..., None].expand_as(entries) if mask.ndim < entries.ndim else mask
    entries = torch.where(mask, entries, 0.0)
    if inputs.weight is not None:
        weight = inputs.weight[..., None] if entries.ndim > inputs.weight.ndim else inputs.weight
        entries = entries * weight.to(entries)
    if inputs.reduction == "none":
        return {"loss": entries}
    return {"loss": entries.sum() / divisor(inputs)}


def gathered(inputs: Inputs) -> Tensor:
    """The target of each prediction [B,M,D]; whatever stands at a padded index."""
    if inputs.indices is None:
        return inputs.target
    wide = inputs.indices[..., None].expand(*inputs.indices.shape, inputs.target.shape[-1])
    return inputs.target.gather(1, wide)


def elementwise(inputs: Inputs, prediction: Tensor, target: Tensor) -> Tensor:
    """The loss of each element [B,M,D], of each token [B,M] for cosine."""
    functional = torch.nn.functional
    if inputs.kind == "cosine":
        return 1 - functional.cosine_similarity(prediction, target, dim=-1)
    if inputs.kind == "power":
        return (prediction - target).abs().pow(inputs.power) / inputs.power
    if inputs.kind == "smooth_l1":
        return functional.smooth_l1_loss(prediction, target, reduction="none", beta=inputs.beta)
    by: dict[str, Callable[..., Tensor]] = {"l1": functional.l1_loss, "mse": functional.mse_loss}
    return by[inputs.kind](prediction, target, reduction="none")


def divisor(inputs: Inputs) -> float:
    """What the sum of weighted entries is divided by; 1 where it is not."""
    if inputs.reduction != "mean":
        return 1.0
    return (inputs.normaliser if inputs.normaliser is not None else inputs.amount()) or 1.0


def reach(inputs: Inputs, upstream: Outputs | None) -> Outputs:
    """The size of what is subtracted, to the power of the loss, in each row; for gradients one power less."""
    own = row_reach(inputs.prediction) + row_reach(gathered(inputs))
    if inputs.normalise_target:
        own = own + inputs.prediction.shape[-1] ** 0.5
    size = own.clamp(min=1.0)
    degree = {"l1": 1.0, "smooth_l1": 2.0, "mse": 2.0, "power": inputs.power, "cosine": 1.0}[inputs.kind]
    entries = size**degree if inputs.kind != "cosine" else torch.ones_like(size)
    slope = 2 * size ** max(degree - 1, 0.0) / min(inputs.beta if inputs.kind == "smooth_l1" else 1.0, 1.0)
    weight = 1.0 if inputs.weight is None else inputs.weight.double()[..., None]
    scored = inputs.mask.any(-1, keepdim=True) if inputs.mask.ndim == inputs.prediction.ndim else inputs.mask[..., None]
    entries, slope = (x * weight * scored for x in (entries, slope))
    width = 1 if inputs.kind == "cosine" else inputs.prediction.shape[-1]
    rows = entries[..., 0] if inputs.kind == "cosine" else entries
    found = {"loss": rows if inputs.reduction == "none" else entries.sum() * width / divisor(inputs)}
    if upstream is not None:
        own_upstream = upstream["loss"].detach().double().abs()
        own_upstream = own_upstream.amax(-1, keepdim=True) if own_upstream.ndim == 3 and width else own_upstream
        own_upstream = own_upstream[..., None] if own_upstream.ndim == 2 else own_upstream
        found["grad:prediction"] = own_upstream * slope / divisor(inputs)
    return found


def draws(inputs: Inputs) -> Iterator[Inputs]:
    """Fresh values of the same size, for the scale of the ordinary form's error."""
    for seed in range(5 if inputs.prediction.numel() else 0):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(inputs.prediction.shape, generator=generator).to(inputs.prediction)
        yield dataclasses.replace(inputs, prediction=inputs.prediction.detach() + noise)


def strategy() -> st.SearchStrategy[Case]:
    """Small ragged cases over all kinds and options."""
    return st.builds(
        Case,
        seed=st.integers(0, 2**16),
        batch=st.integers(0, 4),
        length=st.integers(1, 9),
        features=st.sampled_from([1, 2, 3, 17, 64, 80]),
        grid=st.sampled_from([0, 0, 11, 30]),
        kind=st.sampled_from(KINDS),
        beta=st.sampled_from([1.0, 0.25, 2.0]),
        power=st.sampled_from([1.0, 1.5, 2.0]),
        normalise_target=st.booleans(),
        by=st.sampled_from(["token", "token", "element"]),
        masked=st.sampled_from(["some", "some", "ragged", "one", "none", "all"]),
        weighted=st.sampled_from([False, False, True]),
        near=st.sampled_from([1.0, 0.1, 3.0]),
        reduction=st.sampled_from(["mean", "mean", "sum", "none"]),
    )


CASES = {
    "smooth-l1": Case(),
    "l1": Case(kind="l1", seed=1),
    "mse": Case(kind="mse", seed=2),
    "power": Case(kind="power", power=1.5, seed=3),
    "cosine": Case(kind="cosine", seed=4),
    "small-beta": Case(beta=0.25, seed=5),
    "normalised": Case(normalise_target=True, kind="l1", seed=6),
    "padded-indices": Case(grid=12, masked="ragged", batch=3, seed=7),
    "padded-normalised": Case(grid=12, masked="ragged", batch=3, normalise_target=True, kind="l1", seed=8),
    "by-element": Case(by="element", seed=9),
    "by-element-mse": Case(by="element", kind="mse", reduction="sum", seed=10),
    "sum": Case(reduction="sum", kind="mse", seed=11),
    "entries": Case(reduction="none", seed=12),
    "entries-cosine": Case(reduction="none", kind="cosine", seed=13),
    "accumulated": Case(normaliser=410.0, kind="mse", seed=14),
    "weights": Case(weighted=True, seed=15),
    "all-masked": Case(masked="all", seed=16),
    "none-masked": Case(masked="none", kind="mse", seed=17),
    "one": Case(batch=1, length=1, masked="none", kind="l1", seed=18),
    "one-feature": Case(features=1, kind="mse", seed=19),
    "wide": Case(features=1408, length=3, seed=20),  # no power of two
    "ragged": Case(batch=5, length=9, masked="ragged", kind="mse", seed=21),
    "near": Case(near=1e-2, seed=22),  # inside beta
    "outliers": Case(near=40.0, kind="mse", seed=24),
    "one-sample": Case(batch=1, length=4, seed=25),
    "no-sample": Case(batch=0, seed=23),
}


def _assay(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {"loss": function(inputs.prediction, inputs.target, inputs.mask, **arguments(inputs)).value}


def _masked(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {"loss": function(inputs.prediction, inputs.target, inputs.mask)}


def _plain(kind: str) -> Callable[[Inputs], str | None]:
    def accepts(inputs: Inputs) -> str | None:
        told = (inputs.kind, inputs.beta, inputs.normalise_target, inputs.reduction, inputs.normaliser)
        if told != (kind, 1.0, False, "mean", None) or inputs.weight is not None or inputs.indices is not None:
            return f"the form is the mean of {kind} over a mask"
        return None

    return accepts


def _gather(function: Callable[..., Any], inputs: Inputs) -> Outputs:
    return {"loss": function(inputs.prediction, inputs.target, inputs.indices, inputs.mask)}


def _gather_only(inputs: Inputs) -> str | None:
    if inputs.indices is None or inputs.kind != "smooth_l1" or inputs.normalise_target or inputs.beta != 1.0:
        return "the form is the mean of smooth_l1 over gathered targets"
    return None if inputs.reduction == "mean" and inputs.normaliser is None else "the form has its own mean only"


def _gather_normalised_only(inputs: Inputs) -> str | None:
    if inputs.indices is None or inputs.kind != "smooth_l1" or not inputs.normalise_target or inputs.beta != 1.0:
        return "the form is the mean of smooth_l1 over gathered and normalised targets"
    return None if inputs.reduction == "mean" and inputs.normaliser is None else "the form has its own mean only"


MEAN: dict[str, Any] = {
    "beta": 1.0, "normalise_target": False, "weighted": False, "reduction": "mean", "normaliser": None,
}  # fmt: skip
"""Case parameters of a form that is a mean and nothing else."""

FORMS = (
    Form(
        name="assay",
        summary="function(prediction, target, mask, *, kind, beta, power, ..., normaliser) -> (value, count)",
        parameters=("prediction", "target", "mask", "kind"),
        call=_assay,
    ),
    *(
        Form(
            name=f"masked-{kind.replace('_', '-')}",
            summary=f"function(prediction, target, mask): the mean of {kind} where the mask is True",
            parameters=("prediction", "target", "mask"),
            call=_masked,
            accepts=_plain(kind),
            fixes={**MEAN, "kind": kind, "grid": 0, **({"by": "token"} if kind == "cosine" else {})},
        )
        for kind in ("l1", "smooth_l1", "mse", "cosine")
    ),
    Form(
        name="gathered-smooth-l1",
        summary="function(prediction, features, indices, valid): the mean of smooth_l1 at valid indices",
        parameters=("prediction", "features", "indices", "valid"),
        call=_gather,
        accepts=_gather_only,
        fixes={**MEAN, "kind": "smooth_l1", "grid": 12, "by": "token"},
    ),
    Form(
        name="gathered-normalised",
        summary="function(prediction, features, indices, valid): the same, to features that are layer-normed first",
        parameters=("prediction", "features", "indices", "valid"),
        call=_gather,
        accepts=_gather_normalised_only,
        fixes={**MEAN, "kind": "smooth_l1", "grid": 12, "by": "token", "normalise_target": True},
    ),
)

OPERATION = Operation(
    name=NAME,
    summary="a masked regression of features: L1, smooth L1, MSE, a power, cosine; ragged targets through indices",
    params=Case,
    build=build,
    outputs=("loss",),
    expect=Numeric(oracle=reference, eager=eager, reach=reach, draws=draws),
    forms=FORMS,
    cases=CASES,
    strategy=strategy,
    differentiable=("prediction",),
    dtypes=("float32", "bfloat16"),
    further_dtypes=("float16",),
    sums=("loss",),
    supports=supports,
)

CANDIDATES = (
    of_reference(NAME, f"{__name__}:reference", origin="assay.reference.masked_loss"),
    of_function(
        NAME, "kernel", "assay.kernels.masked_regression:masked_regression", origin="assay.kernels.masked_regression",
        form="assay", costly=True,
    ),
)  # fmt: skip
