"""Models that were to be quantised and are not, or not as requested."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from assay.audits.components.loading.quantisation import NAME
from assay.audits.components.loading.quantisation_own import Bytes, Packed, net, quantised, request
from assay.audits.components.loading.quantised import QuantisedCall, answer
from assay.audits.fault import CONSTRUCTED, fault
from assay.audits.terms import Fault, Outputs


def faulty(*caught_by: str, link: str = CONSTRUCTED) -> Callable[[Callable[[], Any]], Fault]:
    """Turn a function that makes a wrong model into an entry; its docstring is the entry's."""

    def entry(make: Callable[[], Any]) -> Fault:
        @functools.wraps(make)
        def wrong(call: QuantisedCall) -> Outputs:
            return answer(make, call)

        return fault(NAME, *caught_by, link=link)(wrong)

    return entry


@faulty("stored", "changed")
def request_turned_off() -> dict[str, Any]:
    """The backend does not support four bits here: it warns, and loads the model as it is.

    Effect: eight times the memory, and results that are reported as those of four bits.
    """
    warnings.warn("4-bit quantization is not supported on this device, loading in float32", stacklevel=1)
    return request(copy.deepcopy(net()))


@faulty("stored", "levels")
def eight_bits_for_four() -> dict[str, Any]:
    """The backend has eight bits only, and takes them where four were asked for.

    Effect: twice the memory, and an evaluation of a better model than the one that will be used.
    """
    return request(quantised(Bytes))


class _Pretended(Packed):
    """Rounds the weights and keeps them in float32."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.dense = nn.Parameter(self.weight())
        del self.codes
        del self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dense, self.bias)


@faulty("stored", "memory")
def rounded_and_kept_in_float() -> dict[str, Any]:
    """Weights are rounded to four bits and stored in float32, as in training with quantisation in view.

    Effect: the scores are those of four bits, the memory is that of none.
    """
    return request(quantised(_Pretended))


class _Unused(Packed):
    """Computes with the original weights, which it keeps where no list of parameters has them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self._original = [layer.weight.detach().clone()]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self._original[0], self.bias)


@faulty("changed", "levels", "memory")
def quantised_and_not_used() -> dict[str, Any]:
    """Quantised weights are made, and forward uses the originals, which are kept in an attribute.

    Effect: nothing is saved, and nothing of the model is what was asked for.
    """
    return request(quantised(_Unused))


@faulty("memory")
def copies_beside_the_layers() -> dict[str, Any]:
    """The model keeps the original weights in a buffer of its own, to dequantise for a backward pass.

    Effect: each layer is small, and the model is larger than before.
    """
    made = quantised(Packed)
    kept = torch.cat([layer.weight.flatten() for layer in net().modules() if isinstance(layer, nn.Linear)])
    made.register_buffer("backup", kept.detach(), persistent=False)
    return request(made)


class _Swapped(Packed):
    """Unpacks the halves of a byte in the other order."""

    def weight(self) -> Tensor:
        held = super().weight()
        return torch.stack([held[:, 1::2], held[:, ::2]], dim=-1).flatten(1)


@faulty("near", "scores")
def halves_of_a_byte_swapped() -> dict[str, Any]:
    """The two weights of each byte are unpacked in the other order than they were packed in.

    Effect: each weight stands beside its place; memory and levels are right.
    """
    return request(quantised(_Swapped))


class _OneScale(Packed):
    """Has the scale of the first group for the whole row."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        held: Tensor = self.get_buffer("scale")
        self.register_buffer("scale", held[:, :1].expand_as(held).contiguous())


@faulty("near")
def scale_of_the_first_group() -> dict[str, Any]:
    """Every group of a row is scaled as its first one.

    Effect: weights are off by the ratio of the groups' largest, a few percent here and much with outliers.
    """
    made = net()
    with torch.no_grad():
        for name, layer in made.named_modules():
            if name.endswith(("up", "down")):
                layer.get_parameter("weight")[:, :32] *= 4
    wrong = copy.deepcopy(made)
    for block in wrong.blocks:
        for name in ("up", "down"):
            block[name] = _OneScale(block[name])  # type: ignore[operator, index]
    return {**request(wrong), "original": made}


@faulty("excluded")
def router_quantised_too() -> dict[str, Any]:
    """The list of excluded names is compared with whole paths and matches nothing: the router is quantised.

    Effect: tokens go to other experts, which costs more than all other layers together.
    """
    return request(quantised(Bytes, exclude=("head",)), 8, group=0)


@faulty("excluded")
def norms_rounded() -> dict[str, Any]:
    """All tensors were rounded to whole steps, those of norms and embeddings too.

    Effect: the embeddings, which were not to be touched, have sixteen levels.
    """
    made = quantised(Packed)
    with torch.no_grad():
        made.embed.weight.mul_(8).round_().div_(8)
    return request(made)


@faulty("stored")
def one_layer_left_out() -> dict[str, Any]:
    """The last block is not quantised, since its layers were renamed after the list was made.

    Effect: half the memory that was to be saved is not.
    """
    made = quantised(Packed)
    made.blocks[1]["down"] = net().blocks[1]["down"]  # type: ignore[index, operator]
    return request(made)


@faulty("scores")
def layers_in_each_others_place() -> dict[str, Any]:
    """A norm that stands before a quantised layer was folded into it and is applied again.

    Effect: each layer is right, and the model is not.
    """
    made = quantised(Packed)
    plain = made.forward

    def forward(input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": 1.5 * plain(input_ids)["logits"]}

    made.forward = forward  # type: ignore[method-assign]
    return request(made)


@faulty("config")
def configuration_of_another_width() -> dict[str, Any]:
    """The configuration says four bits of a model in eight.

    Effect: whoever loads what was saved unpacks two weights from each byte.
    """
    made = quantised(Bytes)
    told = SimpleNamespace(quantization_config={"bits": 4, "modules_to_not_convert": ["gate"]})
    made.config = told  # type: ignore[assignment]
    return request(made, 8, group=0)


@faulty("nondeterministic")
def rounded_at_random() -> dict[str, Any]:
    """Activations are rounded up or down by chance, at every call.

    Effect: the same prompt has another answer each time.
    """

    class Chance(Bytes):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 1e-3 * torch.rand_like(x))

    return request(quantised(Chance), 8, group=0)


@faulty("leaks")
def seeded_by_forward() -> dict[str, Any]:
    """Forward sets the global seed, so that its rounding by chance is the same each time.

    Effect: everything else that draws, dropout first, draws the same in every step.
    """

    class Seeding(Bytes):
        def forward(self, x: Tensor) -> Tensor:
            torch.manual_seed(0)
            return super().forward(x)

    return request(quantised(Seeding), 8, group=0)
