"""transformers 5.23.0: Aya Vision and Cohere2 Vision do not scale their logits, which their text model alone does.

`logit_scale` of the text configuration (0.0625 unless told) is applied by Cohere2ForCausalLM. The models with images that have
the same text model and the same configuration inside score with the bare head. Second ways: Cohere2ForCausalLM with the same
weights on the same text; PaliGemma 2, where the model with images applies its text model's cap.
"""

import sys

import torch
from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration, Cohere2Config, Cohere2ForCausalLM
from transformers import Cohere2VisionConfig, Cohere2VisionForConditionalGeneration, Gemma2Config
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "logit_scale": 0.25,
}  # fmt: skip
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
}  # fmt: skip
torch.manual_seed(0)
text = Cohere2ForCausalLM(Cohere2Config(**TEXT)).eval()
torch.nn.init.normal_(text.lm_head.weight)  # tied with the embeddings
ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1))
inside = {"model_type": "cohere2", **TEXT}
models = {
    "Cohere2 Vision": Cohere2VisionForConditionalGeneration(
        Cohere2VisionConfig(text_config=inside, vision_config=VISION, image_token_id=63)
    ),
    "Aya Vision": AyaVisionForConditionalGeneration(
        AyaVisionConfig(text_config=inside, vision_config=VISION, image_token_index=63)
    ),
}
wrong = []
with torch.no_grad():
    right = text(ids, labels=ids)
    print(f"Cohere2, text alone: loss {right.loss:.4f}")
    for name, model in models.items():
        model.eval().model.language_model.load_state_dict(text.model.state_dict())
        model.tie_weights()
        found = model(ids, labels=ids)
        factor = float((found.logits / right.logits).median())
        print(
            f"{name}, the same text and weights: loss {found.loss:.4f}; logits are {factor:.2f} times as large (right: 1)"
        )
        wrong.append(abs(factor - 4) < 1e-3)
    small = {**TEXT, "head_dim": 16, "final_logit_softcapping": 30.0}
    del small["logit_scale"]
    gemma = PaliGemmaConfig(
        text_config={"model_type": "gemma2", **small},
        vision_config={**VISION, "projection_dim": 32},
        image_token_index=63,
    )
    pali = PaliGemmaForConditionalGeneration(gemma).eval()
    torch.nn.init.normal_(pali.get_output_embeddings().weight, std=5.0)
    largest = float(pali(ids).logits.abs().max())
    cap = Gemma2Config(**small).final_logit_softcapping
    print(f"PaliGemma 2, cap of {cap:.0f} in its text configuration: largest logit {largest:.1f} (right, not above)")
sys.exit(1 if all(wrong) and largest <= cap else 0)
