"""What a guard costs: the CPU time of a training step, and what a check adds to it.

    python examples/guard_cost.py

Runs offline, on one thread. Two random Qwen2.5-VL models: the tiny one that the audits use, and one of some 40 million
parameters. Every third step is checked; the hooks are put in at the end of the step before it, and the step between is
one without a guard in it. CPU time is compared, so that what else runs on the machine counts less. A guard with
``every=100`` costs the share in the last column.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

import assay
from assay.audits.families import causal, qwen2_5_vl
from assay.audits.families._weights import randomise

EVERY = 100
"""The default interval."""


def tiny() -> Any:
    """Two layers of 128."""
    return causal.loaded("qwen2_5_vl").build(0).train()


def bigger() -> Any:
    """Eight layers of 512 over a vocabulary of 16,384; the same tower."""
    import transformers

    recipe = qwen2_5_vl.RECIPE
    config = recipe.config(16_384, recipe.tokenizer().convert_tokens_to_ids)
    text, tower = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 512, 2048, 8
    text.num_attention_heads, text.num_key_value_heads = 16, 4
    text.layer_types = ["full_attention"] * 8
    tower.out_hidden_size = 512
    return randomise(transformers.Qwen2_5_VLForConditionalGeneration(config), 0).train()


def batch_of(model: Any, samples: tuple[str, ...]) -> dict[str, Any]:
    """A padded batch with labels on all text."""
    batch = {
        key: value for key, value in causal.loaded("qwen2_5_vl").batch(model, samples).items() if value is not None
    }
    ids = batch["input_ids"]
    hidden = (ids == model.config.image_token_id) | (batch["attention_mask"] == 0)
    return batch | {"labels": ids.masked_fill(hidden, -100)}


def timed(step: Callable[[], None], number: int) -> list[float]:
    """Milliseconds of CPU time of each of some calls."""
    found = []
    for _ in range(number):
        began = time.process_time()
        step()
        found.append(1e3 * (time.process_time() - began))
    return found


def measure(name: str, model: Any, samples: tuple[str, ...], number: int) -> None:
    """Print a row for a model."""
    batch, optimizer = batch_of(model, samples), torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    timed(step, 3)
    with (
        tempfile.TemporaryDirectory() as folder,
        assay.guard(model, optimizer, every=3, folder=folder, on_finding="stop"),
    ):
        times = timed(step, 3 * number + 3)[3:]
    checked, between, before = (statistics.median(times[at::3]) for at in range(3))
    added = checked + before - 2 * between
    million = sum(one.numel() for one in model.parameters()) / 1e6
    print(
        f"{name:7} {million:5.1f} M parameters, {batch['input_ids'].numel():5} tokens: "
        f"step {between:8.1f} ms, a check {added:6.1f} ms, every {EVERY}: {added / EVERY / between:.3%}"
    )


def main() -> None:
    """Measure both models."""
    torch.set_num_threads(1)
    measure("tiny", tiny(), ("t5 i4x8 t6", "t3 i8x8 t9 i4x4 t2"), 25)
    measure("bigger", bigger(), ("t60 i16x16 t120", "t90 i16x16 t60"), 3)


if __name__ == "__main__":
    main()
