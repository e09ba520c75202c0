"""One optimiser step of transformers' own ``Trainer`` on a family's tiny model, for ``masked_loss.trainer``."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from assay.audits.families.adapt import model_of
from assay.audits.families.causal import loaded
from assay.audits.families.loss_run import LossCall, accepts, logits_of, named, shifted, shifts, trained
from assay.audits.families.run import placeholders
from assay.audits.terms import Family, Inexpressible, Outputs

RATE = 0.1


@dataclass(frozen=True, kw_only=True)
class StepCall:
    """What to train on: ``samples``, dealt out to ``micro`` micro-batches of one step in their order.

    ``smoothing`` is the Trainer's ``label_smoothing_factor``. ``by``: the ``trainer``'s step, or the one that follows
    from the ``reference`` loss of all samples. ``packed``: the Trainer gets each micro-batch as one row, from the
    flattening collator of transformers. ``dtype`` is that of the model.
    """

    samples: tuple[str, ...]
    micro: int = 1
    smoothing: float = 0.0
    seed: int = 0
    by: str = "trainer"
    packed: bool = False
    dtype: str = "float32"


def implementation(target: Mapping[str, Any]) -> Step:
    """The step of ``target["family"]``, under ``target["patch"]`` if there is one."""
    return Step(loaded(target["family"]), str(target.get("patch", "")))


class Step:
    """A family's tiny model, made afresh for every step, and a Trainer for it."""

    def __init__(self, family: Family, patch: str = "") -> None:
        """Fail early where there is no model, or no Trainer. LookupError with the reason."""
        if find_spec("accelerate") is None:
            message = "accelerate is not installed, and transformers' Trainer needs it: pip install accelerate"
            raise LookupError(message)
        import transformers.trainer  # noqa: F401 - takes seconds, which are not the call's

        self._family, self._patch = family, patch
        family.build(0)

    def __call__(self, call: StepCall) -> Outputs:
        """``loss`` as it is told, and ``move:PARAMETER``: by what each parameter changed."""
        model = self._made().to(getattr(torch, call.dtype))
        before = {name: parameter.detach().clone() for name, parameter in named(model)}
        with torch.enable_grad():
            told = self.trained(model, call) if call.by == "trainer" else self._specified(model, call)
        moves = {f"move:{name}": parameter.detach() - before[name] for name, parameter in named(model)}
        return {"loss": torch.as_tensor(told, dtype=torch.float64), **moves}

    def _made(self) -> Any:
        return model_of(self._family, self._patch)

    def batches(self, model: Any, call: StepCall, *, shift: bool = True) -> list[dict[str, Any]]:
        """The micro-batches with their labels, shifted beforehand where the family documents that it does not."""
        size = len(call.samples) // call.micro
        return [self._batch(model, call, slice(at, at + size), shift=shift) for at in range(0, len(call.samples), size)]

    def packs(self, model: Any, call: StepCall) -> list[dict[str, Any]]:
        """The micro-batches as the flattening collator makes them. Inexpressible where the family cannot be told."""
        from transformers import DataCollatorWithFlattening

        if not accepts(model, "position_ids") or not shifts(model):
            raise Inexpressible("its forward takes no position_ids" if shifts(model) else "it does not shift labels")
        collate, made = DataCollatorWithFlattening(), self.batches(model, call)
        return [dict(collate(list(_samples(batch)))) for batch in made]

    def _batch(self, model: Any, call: StepCall, own: slice, *, shift: bool) -> dict[str, Any]:
        keys = tuple(range(len(call.samples)))[own]
        made = self._family.batch(model, call.samples[own], seed=call.seed, keys=keys)
        batch = {name: value for name, value in made.items() if value is not None}
        special = placeholders(model.config, model.get_input_embeddings().num_embeddings)
        labels = trained(batch, LossCall(samples=call.samples[own], keys=keys), special)
        return {**batch, "labels": labels if shifts(model) or not shift else shifted(labels)}

    def trainer(self, model: Any, call: StepCall, folder: str) -> Any:
        """A Trainer for one step of plain gradient descent that writes nothing and tells nothing."""
        from transformers import PrinterCallback, Trainer, TrainingArguments

        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=1, gradient_accumulation_steps=call.micro, max_steps=1,
            use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, max_grad_norm=0.0,
            remove_unused_columns=False, label_smoothing_factor=call.smoothing,
        )  # fmt: skip
        descent = torch.optim.SGD(model.parameters(), lr=RATE)
        constant = torch.optim.lr_scheduler.LambdaLR(descent, lambda _step: 1.0)
        made = Trainer(
            model=model, args=arguments, data_collator=_only,
            train_dataset=self.packs(model, call) if call.packed else self.batches(model, call),
            optimizers=(descent, constant),
        )  # fmt: skip
        made.remove_callback(PrinterCallback)
        return made

    def trained(self, model: Any, call: StepCall) -> float:
        """Take the step; the loss that the Trainer tells. The Trainer seeds all generators: that is put back."""
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            return float(self.trainer(model, call, folder).train().training_loss)

    def _specified(self, model: Any, call: StepCall) -> Tensor:
        from assay.reference import masked_loss

        model.train()
        (batch,) = self.batches(model, dataclasses.replace(call, micro=1), shift=False)
        labels = batch.pop("labels")
        logits = logits_of(model, batch, gradients=True)
        loss = masked_loss.cross_entropy(logits, labels, shift=True, label_smoothing=call.smoothing).value
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.optim.SGD(model.parameters(), lr=RATE).step()
        return loss.detach()


def _samples(batch: Mapping[str, Tensor]) -> Iterator[dict[str, list[int]]]:
    """The samples of a padded batch, each as a dataset has it."""
    for row, kept in enumerate(batch["attention_mask"].bool()):
        yield {name: batch[name][row][kept].tolist() for name in ("input_ids", "labels")}


def _only(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """The collator of batches that are made beforehand."""
    return batches[0]
