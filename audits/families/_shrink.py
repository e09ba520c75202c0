"""Makes the configuration of a tiny model out of any family's own configuration class.

Sizes are known by the names that configurations give them; what has another name stays as it is. One table serves all
families, so that a family needs no file of its own; what it does not fit says so when the model is built.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

VOCABULARY = 128
ORDINARY = 96
"""Ids from here on are special tokens, if anything."""
HEADS = 4


def _sizes(**groups: str) -> dict[str, int]:
    """``size_64="a b"`` as ``{"a": 64, "b": 64}``."""
    return {name: int(key.rpartition("_")[2]) for key, names in groups.items() for name in names.split()}


DEPTHS = (
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers depth layers num_blocks"
)
QUERY_HEADS = (
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads "
    "swa_num_attention_heads num_sliding_attention_heads index_n_heads linear_num_heads"
)
KEY_HEADS = "num_key_value_heads num_kv_heads num_query_groups swa_num_key_value_heads"
LATENT = ("kv_lora_rank", "q_lora_rank", "linear_num_heads")
"""Where keys are made from a latent vector, or of linear attention, there are as many of them as queries."""

SIZES = _sizes(
    depths_2=DEPTHS,
    queries_4=QUERY_HEADS,
    keys_2=KEY_HEADS,
    widths_64="hidden_size n_embd d_model dim embed_dim embedding_size emb_dim embedding_dim word_embed_proj_dim "
    "input_embedding_size output_embedding_size text_hidden_size attention_hidden_size lru_width out_hidden_size "
    "vision_output_dim projection_dim hidden_size_global encoder_hidden_size backbone_hidden_size",
    inner_64="intermediate_size n_inner ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff dff dim_ff feed_forward_size "
    "ffn_hidden_size d_inner mlp_dim intermediate_size_mlp shared_intermediate_size dense_intermediate_size "
    "moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size expert_ffn_hidden_size "
    "shared_experts_intermediate_size moe_hidden_size share_expert_dim router_hidden_size alignment_intermediate_size "
    "projection_intermediate_size projector_hidden_size projection_hidden_dim projection_hidden_size "
    "merged_hidden_size downsample_hidden_size adapter_in_dim adapter_out_dim index_topk",
    heads_16="head_dim d_kv dim_head d_head kv_channels swa_head_dim attention_head_size linear_head_dim v_head_dim "
    "qk_nope_head_dim index_head_dim linear_key_head_dim linear_value_head_dim mamba_d_head mamba_head_dim "
    "mamba_headdim mamba_d_state ssm_state_size state_size hidden_size_per_layer_input laurel_rank num_mel_bins "
    "num_position_embeddings query_pre_attn_scalar",
    vocabularies_128="vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size audio_vocab_size "
    "mamba_d_ssm",
    positions_256="max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length "
    "max_target_positions max_source_positions original_max_position_embeddings seq_length",
    experts_4="num_experts n_routed_experts num_local_experts moe_num_experts linear_num_value_heads",
    chosen_2="num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts linear_num_key_heads "
    "n_mamba_heads",
    groups_1="n_group topk_group num_expert_group mamba_n_groups n_groups mamba_ngroups first_k_dense_replace",
    ranks_32="q_lora_rank kv_lora_rank o_lora_rank codebook_size num_embeddings dim_model_base attention_head_dim",
    mamba_8="mamba_n_heads mamba_num_heads mamba_dt_rank time_step_rank qk_rope_head_dim rotary_dim",
    joined_24="qk_head_dim",
    image_28="image_size",
    ngram_64="ngram_vocab_size_base",
    shared_0="num_kv_shared_layers",
)
UNSET = ("head_dim", "num_experts_per_tok", "moe_intermediate_size")
"""Sizes that some classes leave open and their models cannot do without."""
NEUTRAL: Mapping[str, Any] = {"is_decoder": True, "causal": True, "output_router_logits": False, "use_cache": False}
"""What decides that a model is causal, and that its loss has no further term."""


def shrunk(config: Any, **more: Any) -> Any:
    """A tiny configuration of the class of ``config``, which is one with its defaults; ``more`` are further fields."""
    kind, fields = type(config), _fields(config)
    out: dict[str, Any] = {}
    for name, value in fields.items():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            out[name] = shrunk(value)
        elif (new := _new(name, value, fields)) is not None:
            out[name] = new
    return kind(**{**out, **_special(fields), **_cut(kind, fields, out), **more})


def _fields(config: Any) -> dict[str, Any]:
    """Its fields with their defaults; one that may differ from layer to layer raises where it is read."""
    kind = type(config)
    if not dataclasses.is_dataclass(kind):
        return {name: getattr(config, name, None) for name in config.to_dict()}
    return {field.name: _read(config, field) for field in dataclasses.fields(kind)}


def _read(config: Any, field: dataclasses.Field[Any]) -> Any:
    try:
        return getattr(config, field.name, None)
    except RuntimeError:  # what differs between the layers of a heterogeneous configuration
        return None if field.default is dataclasses.MISSING else field.default


def _new(name: str, value: Any, fields: Iterable[str]) -> Any:
    """The tiny value of a field, or None where it stays."""
    if isinstance(value, bool):
        return NEUTRAL.get(name)
    if value is None or isinstance(value, int | float):
        return _number(name, value, fields)
    return None


def _number(name: str, value: Any, fields: Iterable[str]) -> Any:
    if value is not None and ("drop" in name or "jitter" in name):
        return type(value)(0)
    if isinstance(value, float):
        return 0.0 if name.endswith(("aux_loss_coef", "aux_loss_alpha")) else None
    if name in KEY_HEADS.split() and (value is None or set(LATENT) & set(fields)):
        return HEADS
    return SIZES.get(name) if value is not None or name in UNSET else None


def _special(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of special tokens, each its own, clear of the ordinary ones."""
    ends = ("_token_id", "_token_index", "_token_ids", "_patch_id")
    names = [name for name, value in fields.items() if name.endswith(ends) and _is_id(value)]
    free = dict(zip(names, range(VOCABULARY - 1, ORDINARY - 1, -1), strict=False))
    return {name: [free[name]] * len(fields[name]) if isinstance(fields[name], list) else free[name] for name in free}


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, list)) and not isinstance(value, bool)


def _cut(kind: type[Any], fields: Mapping[str, Any], out: Mapping[str, Any]) -> dict[str, Any]:
    """Lists with an entry for each layer, cut to the layers that are left, where the class spells them out."""
    depth = next((name for name in DEPTHS.split() if name in out and isinstance(fields[name], int)), "")
    if not depth or not dataclasses.is_dataclass(kind):
        return {}
    spelt = {field.name for field in dataclasses.fields(kind) if field.default is not None}
    lists = {name: value for name, value in fields.items() if isinstance(value, (list, tuple)) and name in spelt}
    return {name: list(value)[: out[depth]] for name, value in lists.items() if len(value) == fields[depth]}
