"""The full-size configurations, on the meta device: `intervene` enters and leaves, and finds what it needs."""

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    InternVLConfig,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
)

from tdrs import TDRS, VAF, intervene


def llava_1_5_7b() -> PreTrainedConfig:
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=LlamaConfig(vocab_size=32064), image_token_index=32000)


def internvl2_8b() -> PreTrainedConfig:
    text = LlamaConfig(
        vocab_size=92553, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=32768,
    )  # fmt: skip
    return InternVLConfig(
        vision_config=InternVLVisionConfig(), text_config=text, image_token_id=92546, tie_word_embeddings=False
    )


def qwen2_5_vl_7b() -> PreTrainedConfig:
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {"hidden_size": 1280, "out_hidden_size": 3584, "depth": 32, "num_heads": 16, "intermediate_size": 3420}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision)


@pytest.mark.parametrize(
    ("make", "billions", "layers"), [(llava_1_5_7b, 7.06, 32), (internvl2_8b, 8.08, 32), (qwen2_5_vl_7b, 8.29, 28)]
)
def test_an_edit_enters_and_leaves(make: object, billions: float, layers: int) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(make(), attn_implementation="sdpa").eval()
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.02)
    for method in (TDRS(distance="position", pairs="text_to_image"), VAF()):
        with intervene(model, method) as session:
            assert len(session.layers) == layers
            assert session.image_token == model.config.image_token_id
            assert model.get_decoder().config._attn_implementation == "tdrs_sdpa"
        assert model.get_decoder().config._attn_implementation == "sdpa"
    assert len(VAF().layers) > 0
