"""A tiny model quantised by libraries that may not be installed; importing fails then, and the verdict is UNKNOWN."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from assay.audits.components.loading.quantisation_own import Net, net, quantised, request


def _needed(package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        message = f"{package} is not installed: pip install {package}"
        raise LookupError(message) from error


def bitsandbytes_nf4() -> dict[str, Any]:
    """Four bits by bitsandbytes: NF4 in blocks of 64."""
    library = _needed("bitsandbytes")

    def kind(layer: nn.Linear) -> Any:
        bias = layer.bias is not None
        made = library.nn.Linear4bit(layer.in_features, layer.out_features, bias=bias, quant_type="nf4")
        made.load_state_dict(layer.state_dict())
        return made.to("cpu")

    return request(quantised(kind), 4, group=64)


def bitsandbytes_int8() -> dict[str, Any]:
    """Eight bits by bitsandbytes, a scale for each row."""
    library = _needed("bitsandbytes")

    def kind(layer: nn.Linear) -> Any:
        bias = layer.bias is not None
        made = library.nn.Linear8bitLt(layer.in_features, layer.out_features, bias=bias, has_fp16_weights=False)
        made.load_state_dict(layer.state_dict())
        return made.to("cpu")

    return request(quantised(kind), 8, group=0)


def torchao_int8() -> dict[str, Any]:
    """Eight bits by torchao, a scale for each row."""
    library = _needed("torchao.quantization")
    made = copy.deepcopy(net())
    library.quantize_(made, library.Int8WeightOnlyConfig(), filter_fn=_inner)
    return request(made, 8, group=0)


def torchao_four_of_eight() -> dict[str, Any]:
    """Four bits by torchao for a CPU: each of them is stored in a byte, which is found."""
    library = _needed("torchao.quantization")
    made = copy.deepcopy(net())
    options = library.IntxWeightOnlyConfig(weight_dtype=_needed("torch").int4, granularity=library.PerGroup(32))
    library.quantize_(made, options, filter_fn=_inner)
    return request(made)


def _inner(layer: nn.Module, name: str) -> bool:
    return isinstance(layer, nn.Linear) and name.rpartition(".")[2] in {"up", "down"}


__all__ = ["Net", "bitsandbytes_int8", "bitsandbytes_nf4", "torchao_four_of_eight", "torchao_int8"]
