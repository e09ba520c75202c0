"""Right losses written otherwise are not accused: what trainers write with PyTorch's own functions passes every law."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from assay.audits import registry
from assay.audits.components.masked_loss import cross_entropy, gather, linear, regression, step, tokens, total
from assay.audits.run import Options, audit
from assay.audits.terms import Candidate, Outputs, Verdict
from assay.reference import masked_loss

EXAMPLES = 4


def _mean(rows: Tensor, inputs: tokens.Labelled) -> Tensor:
    """Row losses [N] of the scored rows to what is asked for."""
    return tokens.reduced(rows, inputs.scored(), inputs)


def _parts(inputs: cross_entropy.Inputs) -> tuple[Tensor, Tensor]:
    """Scored rows in float32, capped, and their labels."""
    labels = tokens.targets(inputs.labels, inputs.ignore_index, shift=inputs.shift)
    rows = inputs.logits[inputs.scored()].float()
    return (rows if inputs.softcap is None else inputs.softcap * (rows / inputs.softcap).tanh()), labels[
        inputs.scored()
    ]


def by_difference(inputs: cross_entropy.Inputs) -> Outputs:
    """The log-sum-exp less the target's logit, in float32: rounding grows with the level of the logits."""
    rows, labels = _parts(inputs)
    lse = rows.logsumexp(-1)
    nll = lse - rows.gather(-1, labels[:, None])[:, 0]
    smooth = lse - rows.mean(-1)
    own = nll * (1 - inputs.label_smoothing) + inputs.label_smoothing * smooth + inputs.z_loss * lse**2
    return {"loss": _mean(own, inputs)}


def by_one_hot(inputs: cross_entropy.Inputs) -> Outputs:
    """A target distribution times the log-probabilities."""
    rows, labels = _parts(inputs)
    vocab = rows.shape[-1]
    target = F.one_hot(labels, vocab).float() * (1 - inputs.label_smoothing) + inputs.label_smoothing / vocab
    own = -(target * rows.log_softmax(-1)).sum(-1) + inputs.z_loss * rows.logsumexp(-1) ** 2
    return {"loss": _mean(own, inputs)}


def by_hand(inputs: cross_entropy.Inputs) -> Outputs:
    """The largest logit subtracted, exponentials, their sum."""
    rows, labels = _parts(inputs)
    top = rows.amax(-1, keepdim=True).detach()
    lse = (rows - top).exp().sum(-1).log() + top[:, 0]
    nll = -((rows - lse[:, None]).gather(-1, labels[:, None])[:, 0])
    own = nll * (1 - inputs.label_smoothing) - inputs.label_smoothing * (rows - lse[:, None]).mean(-1)
    return {"loss": _mean(own + inputs.z_loss * lse.square(), inputs)}


def in_the_logits_dtype(inputs: cross_entropy.Inputs) -> Outputs:
    """PyTorch's function on rows as they come, without an upcast, then the sum over the count."""
    labels = tokens.targets(inputs.labels, inputs.ignore_index, shift=inputs.shift)
    x = inputs.logits if inputs.softcap is None else inputs.softcap * torch.tanh(inputs.logits / inputs.softcap)
    own = F.cross_entropy(
        x.flatten(0, 1), labels.flatten(), ignore_index=inputs.ignore_index, reduction="none",
        label_smoothing=inputs.label_smoothing,
    )  # fmt: skip
    scored = inputs.scored()
    lse = torch.where(scored[..., None], x, 0.0).logsumexp(-1).square()[scored] if inputs.z_loss else 0.0
    return {"loss": _mean(own.view(labels.shape)[scored] + inputs.z_loss * lse, inputs)}


def in_chunks(inputs: linear.Inputs) -> Outputs:
    """A few rows of logits at a time, in the dtype of the model, upcast for the loss."""
    labels = tokens.targets(inputs.labels, inputs.ignore_index, shift=inputs.shift)[inputs.scored()]
    own = []
    for rows, targets in zip(inputs.hidden[inputs.scored()].split(64), labels.split(64), strict=True):
        x = F.linear(rows, inputs.head, inputs.bias).float()
        x = x if inputs.softcap is None else inputs.softcap * torch.tanh(x / inputs.softcap)
        nll = F.cross_entropy(x, targets, reduction="none", label_smoothing=inputs.label_smoothing)
        own.append(nll + inputs.z_loss * x.logsumexp(-1).square())
    return {"loss": _mean(torch.cat(own) if own else inputs.hidden.new_zeros(0, dtype=torch.float32), inputs)}


def of_float32_products(inputs: linear.Inputs) -> Outputs:
    """Hidden states and head upcast before the product."""
    wide = {"hidden": inputs.hidden.float(), "head": inputs.head.float()}
    bias = None if inputs.bias is None else inputs.bias.float()
    options = cross_entropy.arguments(inputs)
    return {"loss": masked_loss.linear_cross_entropy(**wide, labels=inputs.labels, bias=bias, **options).value}


def by_boolean_index(inputs: regression.Inputs) -> Outputs:
    """The scored entries as one flat list."""
    target = regression.gathered(inputs)
    scored = inputs.scored()
    target = F.layer_norm(target.float(), target.shape[-1:]) if inputs.normalise_target else target.float()
    entries = regression.elementwise(inputs, inputs.prediction.float(), target)
    weight = torch.ones_like(scored, dtype=torch.float32) if inputs.weight is None else inputs.weight
    weight = weight if weight.ndim == scored.ndim else weight[..., None].expand_as(scored)
    picked = entries[scored] * (weight[scored] if entries.ndim == scored.ndim else weight[scored][:, None])
    if inputs.reduction == "none":
        return {"loss": torch.zeros_like(entries).index_put((scored,), picked)}
    return {"loss": picked.sum() / regression.divisor(inputs)}


def by_padding(inputs: gather.Inputs) -> Outputs:
    """Sample by sample, padded by PyTorch."""
    if not len(inputs.features):
        return {"gathered": inputs.features[:, : inputs.indices.shape[1]]}
    rows = [x[i[v]] for x, i, v in zip(inputs.features, inputs.indices, inputs.valid, strict=True)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"gathered": F.pad(padded, (0, 0, 0, inputs.indices.shape[1] - padded.shape[1]))}


def by_loop(inputs: total.Inputs) -> Outputs:
    """One after the other onto zero."""
    told = torch.zeros(())
    for name, loss in inputs.losses().items():
        told = told + inputs.weight_of()[name] * loss
    return {"total": told}


def by_scaling_back(inputs: step.Inputs) -> Outputs:
    """Each rank's sum, times the ranks, over the tokens of all."""
    import torch.distributed as dist

    def own_step(head: Tensor, batches: step.Batches, group: object) -> Tensor:
        shifted = [
            masked_loss.shift_across_ranks(labels, group, -100)
            if inputs.layout == "context"
            else F.pad(labels[:, 1:], (0, 1), value=-100)
            for _, labels in batches
        ]
        count = torch.stack([(labels != -100).sum() for labels in shifted]).sum()
        dist.all_reduce(count, group=group)
        told = torch.zeros(())
        for (hidden, _), labels in zip(batches, shifted, strict=True):
            rows = F.cross_entropy((hidden @ head.T).flatten(0, 1), labels.flatten(), reduction="sum")
            loss = rows * dist.get_world_size(group) / count.clamp(min=1)
            loss.backward()
            told = told + loss.detach()
        return told

    return step.stepped(own_step, inputs)


RIGHT = [
    *((cross_entropy.NAME, form) for form in (by_difference, by_one_hot, by_hand, in_the_logits_dtype)),
    *((linear.NAME, form) for form in (in_chunks, of_float32_products)),
    (regression.NAME, by_boolean_index),
    (gather.NAME, by_padding),
    (total.NAME, by_loop),
    (step.NAME, by_scaling_back),
]


@pytest.mark.parametrize(("operation", "form"), RIGHT, ids=[form.__name__ for _, form in RIGHT])
def test_a_harmless_rewrite_passes(operation: str, form: object) -> None:
    name: str = form.__name__  # type: ignore[attr-defined]  # functions have names
    target = {"kind": "import", "ref": f"{__name__}:{name}", "operation": operation}
    candidate = Candidate(operation=operation, name=name, target=target, trusted=True)
    report = audit(registry.operation(operation), candidate, Options(examples=EXAMPLES))
    found = [(item.rule, item.case, item.dtype, item.where, item.measured, item.limit) for item in report.findings]
    assert found == []
    assert report.verdict == Verdict.PASS
