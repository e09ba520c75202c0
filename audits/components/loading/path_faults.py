"""Pairs of loading paths that give two models."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from assay.audits.components.loading.path_own import Adapted, Detector, against, model, padded_left, plain
from assay.audits.components.loading.path_wrong import faulty


@faulty("tree")
def head_lost() -> dict[str, Any]:
    """Training wraps the model with a detection head; inference loads the plain model, and nobody said so.

    Effect: the head that was trained is never used.
    """

    def training() -> tuple[Any, Any]:
        made, words = plain()
        return Detector(made), words

    return {"training": training, "inference": padded_left}


@faulty("values")
def frequencies_through_bfloat16() -> dict[str, Any]:
    """Inference casts the model to bfloat16 and back: weights are loaded again, the rotary's frequencies are not.

    Effect: positions turn by other angles, the more the farther apart two tokens are.
    """

    def change(made: Any, _words: Any) -> None:
        for name, buffer in made.named_buffers():
            if name.endswith("inv_freq"):
                buffer.copy_(buffer.bfloat16().float())

    return against(change)


@faulty("dtypes")
def one_path_in_bfloat16() -> dict[str, Any]:
    """Inference loads all weights in bfloat16, which is declared nowhere.

    Effect: scores are those of another model, in the third digit.
    """
    return against(lambda made, _words: made.bfloat16())


@faulty("tied")
def head_untied() -> dict[str, Any]:
    """Training ties the output head to the embeddings, inference has a copy of its own.

    Effect: whatever trains the one leaves the other behind.
    """

    def tied() -> tuple[Any, Any]:
        made, words = plain()
        made.lm_head.weight = made.get_input_embeddings().weight
        return made, words

    def change(made: Any, _words: Any) -> None:
        made.lm_head.weight = nn.Parameter(made.get_input_embeddings().weight.detach().clone())

    return against(change, before=tied)


@faulty("shapes")
def embeddings_resized_in_training_only() -> dict[str, Any]:
    """Training makes room for new tokens, inference loads the model as it was released.

    Effect: the new tokens have no embedding where they are to be answered.
    """

    def resized() -> tuple[Any, Any]:
        made, words = plain()
        made.resize_token_embeddings(made.get_input_embeddings().num_embeddings + 64, mean_resizing=False)
        return made, words

    return against(lambda _made, _words: None, before=resized)


@faulty("values", "scores")
def adapters_not_loaded() -> dict[str, Any]:
    """Training has adapters, inference loads the base model alone.

    Effect: the model answers as if it had never been trained.
    """

    def training() -> tuple[Any, Any]:
        made, words = plain()
        return Adapted(made), words

    return {"training": training, "inference": padded_left}


@faulty("values", "repeatable")
def loaded_loosely() -> dict[str, Any]:
    """The keys of one projection were renamed; ``strict=False`` leaves it as it was initialised.

    Effect: one layer is random, and the loader's list of missing keys is thrown away.
    """

    def change(made: Any, _words: Any) -> None:
        state = {name.replace("o_proj", "out_proj"): value.clone() for name, value in made.state_dict().items()}
        for name, parameter in made.named_parameters():
            if "o_proj" in name:
                nn.init.normal_(parameter, std=0.02)
        made.load_state_dict(state, strict=False)

    return against(change)


@faulty("repeatable")
def missing_from_both() -> dict[str, Any]:
    """The checkpoint lacks the projector; both scripts set the same seed, so that both initialise it alike.

    Effect: the two paths agree, and the projector is not the one that was trained.
    """
    counter = itertools.count()

    def load() -> tuple[Any, Any]:
        made, words = plain()
        with torch.random.fork_rng(devices=[]):
            if next(counter) < 2:  # the two scripts set the same seed; whoever loads again sets none
                torch.manual_seed(0)
            nn.init.normal_(made.model.visual.merger.mlp[0].weight, std=0.02)
        return made, words

    return {"training": load, "inference": load}


@faulty("config")
def rope_base_of_the_default() -> dict[str, Any]:
    """The saved configuration has lost the base of the rotary embedding; buffers were copied along.

    Effect: a model that is built anew from that configuration turns by other angles.
    """

    def change(made: Any, _words: Any) -> None:
        made.config.text_config.rope_parameters = {**made.config.text_config.rope_parameters, "rope_theta": 10_000.0}

    return against(change)


@faulty("scores")
def scores_scaled_by_a_wrapper() -> dict[str, Any]:
    """The training wrapper divides the scores by a temperature that inference does not know.

    Effect: the loss was computed of scores that the model never gives.
    """

    class Cooled(Detector):
        def forward(self, input_ids: Any, **more: Any) -> dict[str, Any]:
            out = super().forward(input_ids, **more)
            return {**out, "logits": out["logits"] / 0.7}

    def training() -> tuple[Any, Any]:
        made, words = plain()
        return Cooled(made), words

    return {"training": training, "inference": padded_left, "declared": ("detection_head",)}


@faulty("scores")
def padding_hidden_in_one_path() -> dict[str, Any]:
    """Inference adds a hook that drops the attention mask.

    Effect: rows that are padded see their padding; single prompts are right.
    """

    def change(made: Any, _words: Any) -> None:
        def blind(_module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            ids = kwargs["input_ids"]
            kwargs = {**kwargs, "attention_mask": torch.ones_like(ids), "input_ids": ids.flip(0) * 0 + ids}
            return args, {**kwargs, "position_ids": torch.arange(ids.shape[1]).flip(0).expand(3, len(ids), -1)}

        made.register_forward_pre_hook(blind, with_kwargs=True)

    return against(change)


@faulty("values")
def last_layer_of_an_earlier_checkpoint() -> dict[str, Any]:
    """One shard is of an earlier step: the last norm differs by little.

    Effect: scores are nearly right, and the evaluation is of no model that ever was.
    """

    def change(made: Any, _words: Any) -> None:
        with torch.no_grad():
            made.model.language_model.norm.weight.mul_(1.001)

    return against(change)


@faulty("tree")
def bias_dropped() -> dict[str, Any]:
    """Inference is built without the biases of the query projections, which the checkpoint has.

    Effect: unexpected keys are ignored, and attention is another.
    """

    def change(made: Any, _words: Any) -> None:
        for name, module in made.named_modules():
            if name.endswith("q_proj") and "language_model" in name:
                module.bias = None

    return against(change)


@faulty("nondeterministic")
def drawn_at_each_call() -> dict[str, Any]:
    """The inference wrapper keeps dropout on, also in eval mode.

    Effect: the same prompt has another answer each time.
    """

    class Noisy(Detector):
        def forward(self, input_ids: Any, **more: Any) -> dict[str, Any]:
            out = super().forward(input_ids, **more)
            return {**out, "logits": nn.functional.dropout(out["logits"], 0.1, training=True)}

    return {"training": (model(), plain()[1]), "inference": (Noisy(model()), plain()[1]),
            "declared": ("detection_head",)}  # fmt: skip


@faulty("leaks")
def precision_left_behind() -> dict[str, Any]:
    """The inference model sets the default dtype to bfloat16 when it is first run.

    Effect: every tensor that anything makes from then on is in half precision.
    """

    class Setting(Detector):
        def forward(self, input_ids: Any, **more: Any) -> dict[str, Any]:
            out = super().forward(input_ids, **more)
            torch.set_default_dtype(torch.bfloat16)
            return out

    return {"training": (model(), plain()[1]), "inference": (Setting(model()), plain()[1]),
            "declared": ("detection_head",)}  # fmt: skip
