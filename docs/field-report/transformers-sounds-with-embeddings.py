"""transformers 5.23.0: Audio Flamingo 3 ignores its sounds where embeddings are given instead of ids, without a word.

The forward reads `input_features` only if there are ids, though its search for placeholders knows how to do without. Second ways:
the same call with ids; LLaVA, where an image is looked at in both calls. Qwen2-Audio does as Audio Flamingo 3 does.
"""

import sys

import torch
from transformers import AudioFlamingo3Config, AudioFlamingo3ForConditionalGeneration, LlavaConfig
from transformers import LlavaForConditionalGeneration, Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

AUDIO = {
    "num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32,
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_source_positions": 20,
}  # fmt: skip
TEXT = {
    "model_type": "qwen2", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def heard(model, key, mask, places, *shape):
    """How far another sound or image moves the scores, with ids and with the embeddings of the same ids."""
    ids = torch.tensor([[3, *[60] * places, 4, 5]])
    more = {mask: torch.ones(1, 40).long()} if mask else {}
    gaps = []
    for given in ({"input_ids": ids}, {"inputs_embeds": model.get_input_embeddings()(ids)}):
        scores = []
        for seed in range(2):
            medium = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
            with torch.no_grad():
                scores.append(model(**given, **more, **{key: medium}, attention_mask=torch.ones_like(ids)).logits)
        gaps.append(float((scores[0] - scores[1]).abs().max()))
    return gaps


torch.manual_seed(0)
flamingo = AudioFlamingo3ForConditionalGeneration(
    AudioFlamingo3Config(audio_config=AUDIO, text_config=TEXT, audio_token_id=60)
).eval()
qwen = Qwen2AudioForConditionalGeneration(
    Qwen2AudioConfig(audio_config=AUDIO, text_config=TEXT, audio_token_index=60)
).eval()
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "projection_dim": 32,
}  # fmt: skip
llava = LlavaForConditionalGeneration(LlavaConfig(text_config=TEXT, vision_config=CLIP, image_token_index=60)).eval()
found = {
    "Audio Flamingo 3": heard(flamingo, "input_features", "input_features_mask", 10, 1, 8, 40),
    "Qwen2-Audio": heard(qwen, "input_features", "feature_attention_mask", 10, 1, 8, 40),
    "LLaVA": heard(llava, "pixel_values", None, 4, 1, 3, 8, 8),
}
for name, (ids, embeddings) in found.items():
    print(f"{name}: another input moves the logits by {ids:.1e} with ids, by {embeddings:.1e} with their embeddings")
ids, embeddings = found["Audio Flamingo 3"]
sys.exit(1 if ids > 1e-6 and embeddings == 0 and found["LLaVA"][1] > 1e-6 else 0)
