"""The laws of quantisation: what was requested is in effect, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from assay.audits.components.loading.quantisation import NAME, Case
from assay.audits.laws.limits import FACTOR, excess, floor, relative
from assay.audits.laws.trial import Trial
from assay.audits.patch_runs import from_bytes
from assay.audits.terms import Evidence, Inexpressible, Law, Operation


def stored(trial: Trial) -> Iterator[Evidence]:
    """Each linear layer that was asked for is stored in the bits that were asked for.

    Why: a backend that does not support a device or a format often warns, and loads the model as it is. Bytes are
    counted, in tensor subclasses and in attributes too, against the bits asked for and a scale and a zero of four bytes
    for each group; the name of a class proves nothing.

    Example: four bits were asked for on a device without support; the weights stay in float32, eight times as large.
    """
    record = _record(trial)
    broken = [layer for layer in _asked(record) if not _small(layer)]
    if broken:
        layer = broken[0]
        measured = "absent" if layer["kind"] == "absent" else f"{8 * layer['bytes'] / layer['numel']:.3g} bits"
        said = f"; it warned: {record['warned'][0]}" if record["warned"] else ""
        yield Evidence(
            where=layer["name"], measured=measured, limit=f"{layer['bits']} bits and the scales",
            message=f"a {layer['kind']} is not stored as requested ({len(broken)} such layers){said}",
        )  # fmt: skip


def levels(trial: Trial) -> Iterator[Evidence]:
    """The weights that a layer computes with have no more distinct values in a group than its bits can tell apart.

    Why: what is stored need not be what is used: a layer may keep a copy, or have more bits than were asked for. The
    weights are read from what the layer makes of each unit vector.

    Example: eight bits where four were asked for, since the backend has no four.
    """
    known = [layer for layer in _asked(_record(trial)) if layer.get("levels")]
    if not known:
        raise Inexpressible("a group has no more columns than its bits have levels, or no layer could be read")
    for layer in known:
        if layer["levels"] > 2 ** layer["bits"]:
            yield Evidence(
                where=layer["name"], measured=float(layer["levels"]), limit=float(2 ** layer["bits"]),
                message=f"more distinct weights among {layer['window']} of a row than {layer['bits']} bits have",
            )  # fmt: skip
            return


def near(trial: Trial) -> Iterator[Evidence]:
    """The weights that a layer computes with are near the original's: at most twice as far as rounding to nearest.

    Why: a scale of another group, halves of a byte in the wrong order or a lost zero leave memory and levels as they
    should be. The scale is measured on the same weights, rounded to as many even steps.

    Example: the two weights of each byte are exchanged when they are unpacked.
    """
    known = [layer for layer in _asked(_record(trial)) if "error" in layer]
    if not known:
        raise Inexpressible("no layer could be read")
    for layer in known:
        (worst, all_rows), (usual_worst, usual) = layer["error"], layer["ordinary"]
        for measured, limit, text in ((worst, usual_worst, "of the worst row"), (all_rows, usual, "over all rows")):
            if measured > FACTOR * limit:
                message = f"further from the original than rounding to {layer['bits']} bits explains: RMS error {text}"
                yield Evidence(where=layer["name"], measured=measured, limit=FACTOR * limit, message=message)
                return


def changed(trial: Trial) -> Iterator[Evidence]:
    """Each layer that was asked for computes with other weights than the original, and so does the model.

    Why: no difference at all means that nothing was quantised, or that what was is not what is run.

    Example: quantised weights are made and kept, and forward still uses the original ones.
    """
    for layer in _asked(_record(trial)):
        if "error" in layer and layer["error"][1] == 0:
            yield Evidence(where=layer["name"], measured="no difference", limit="the error of its bits",
                           message="it computes with the original's weights")  # fmt: skip
            return
    out = _scores(trial)
    if out["model"].shape == out["original"].shape and torch.equal(out["model"], out["original"]):
        yield Evidence(where="logits", measured="no difference", limit="the error of the bits",
                       message="the model gives the original's scores, bit for bit")  # fmt: skip


def scores(trial: Trial) -> Iterator[Evidence]:
    """The model's scores are near the original's: at most twice as far as those of rounding to nearest.

    Why: layers may each be right and the model wrong, where a layer stands in another one's place.

    Example: two projections of the same shape get each other's weights.
    """
    out = _scores(trial)
    truth, got = out["original"], out["model"]
    if got.shape != truth.shape:
        yield Evidence(where="logits", measured=f"shape {tuple(got.shape)}", limit=f"shape {tuple(truth.shape)}",
                       message="the scores have another shape than the original's")  # fmt: skip
        return
    reach = truth.abs().amax()

    def rms(value: torch.Tensor) -> torch.Tensor:
        return relative((value - truth).nan_to_num(nan=torch.inf).square().mean().sqrt(), reach)

    allowed = floor([truth.flatten()[0]], reach, torch.float32)
    usual = [rms(out["ordinary"]), rms(out["ordinary.inputs"])]
    found = excess("logits", rms(got), allowed, lambda: usual, "further from the original than usual")
    if found:
        yield found


def excluded(trial: Trial) -> Iterator[Evidence]:
    """Layers that were to stay, and all that is no linear layer, have the original's values in a float dtype.

    Why: a list of excluded names that matches nothing leaves a router or a projector quantised, which costs more than
    all the rest. The output head, which libraries leave alone, may be either unless it is named.

    Example: ``exclude=["router"]`` where the layer is called ``gate``.
    """
    rows = _record(trial)["others"]
    if rows:
        where, got, wanted = rows[0]
        yield Evidence(where=where, measured=got, limit=wanted,
                       message=f"it was to stay as it is ({len(rows)} such parameters)")  # fmt: skip


def memory(trial: Trial) -> Iterator[Evidence]:
    """The whole model holds no more than what was requested comes to.

    Why: a copy of the original weights that is kept beside the quantised ones costs what quantisation was to save.

    Example: each layer keeps its float weights for a backward pass that never comes.
    """
    record = _record(trial)
    if record["total"] > record["allowed"]:
        yield Evidence(where="model", measured=float(record["total"]), limit=float(record["allowed"]),
                       message="bytes of all tensors of the model")  # fmt: skip


def config(trial: Trial) -> Iterator[Evidence]:
    """The configuration says of the layers what they are: bits, and which were left.

    Why: whoever loads the saved model goes by its configuration.

    Example: ``quantization_config`` says four bits over weights that stayed in float32.
    """
    record = _record(trial)
    told = record["config"]
    if told is None or told["bits"] is None:
        raise Inexpressible("the model's configuration says nothing of quantisation")
    mixed = len({layer["bits"] for layer in record["layers"]} - {0}) > 1
    for layer in _asked(record):
        left = any(name and name in layer["name"] for name in told["left"])
        if left or not _small(layer) or (not mixed and told["bits"] != layer["bits"]):
            said = "left as it is" if left else f"{told['bits']} bits"
            bits = 8 * layer.get("bytes", 0) / layer["numel"]
            yield Evidence(where=layer["name"], measured=f"{bits:.3g} bits, of {layer['bits']} requested", limit=said,
                           message="the configuration says otherwise")  # fmt: skip
            return


def _small(layer: Mapping[str, Any]) -> bool:
    return layer["kind"] != "absent" and bool(layer["bytes"] <= layer["limit"])


def _asked(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The layers that were asked for, the head only where it was quantised."""
    asked = [layer for layer in record["layers"] if layer["bits"] and not (layer["head"] and not _small(layer))]
    if not asked:
        raise Inexpressible("no linear layer of the original was asked for")
    return asked


def _record(trial: Trial) -> Mapping[str, Any]:
    found: Mapping[str, Any] = from_bytes(trial.varied(scores=False)["record"])
    return found


def _scores(trial: Trial) -> Mapping[str, torch.Tensor]:
    found: Mapping[str, torch.Tensor] = trial.outcome.values
    return found


def _once(_operation: Operation, params: Case) -> str | None:
    return None if params.seed == 0 else "layers are measured once, whatever the batch"


LAWS = (
    *(Law.of((NAME,), law, _once) for law in (stored, levels, near, excluded, memory, config)),
    Law.of((NAME,), changed),
    Law.of((NAME,), scores),
)
