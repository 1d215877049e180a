"""Random vision-language models of the three architectures, a few thousand parameters each, and a batch for each."""

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
)

IMAGE_TOKEN = 40
TEXT: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENS = 16  # of one image, in all three


def _text(special: dict[str, int]) -> dict[str, Any]:
    """The decoder's settings, with the vocabulary size and the end token of its tokenizer."""
    found = {"vocab_size": special.get("size", 50)}
    if "end" in special:
        found |= {"eos_token_id": special["end"], "pad_token_id": special["pad"]}
    return {**TEXT, **found}


def llava(**special: int) -> Any:
    text = LlamaConfig(**_text(special), head_dim=8)
    vision = CLIPVisionConfig(**VISION, image_size=16, patch_size=4)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=special.get("image", IMAGE_TOKEN),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return LlavaForConditionalGeneration(config)


def internvl(**special: int) -> Any:
    vision = InternVLVisionConfig(**VISION, image_size=[32, 32], patch_size=[4, 4])
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**_text(special)),
        image_token_id=special.get("image", IMAGE_TOKEN),
        downsample_ratio=0.5,
    )
    return InternVLForConditionalGeneration(config)


def qwen2_5_vl(**special: int) -> Any:
    text = {
        **_text(special),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    }
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "depth": 1,
        "num_heads": 2,
        "out_hidden_size": 32,
    }
    vision |= {"patch_size": 4, "fullatt_block_indexes": [0], "window_size": 16}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=special.get("image", IMAGE_TOKEN),
        video_token_id=special.get("video", 41),
        vision_start_token_id=special.get("start", 42),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


ARCHITECTURES = {"llava": llava, "internvl": internvl, "qwen2_5_vl": qwen2_5_vl}


def build(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model in eval mode, and two prompts with an image each, the first left-padded by four tokens."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().eval()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 39, (2, 34), generator=generator)
    mask = torch.ones_like(ids)
    for row, (pad, first) in enumerate(((4, 7), (0, 3))):
        mask[row, :pad] = 0
        ids[row, first : first + TOKENS] = IMAGE_TOKEN
    ids[:, 33] = 5
    inputs = {"input_ids": ids, "attention_mask": mask}
    if name == "qwen2_5_vl":
        # 8 × 8 patches; the model merges 2 × 2 of them into a token
        inputs["pixel_values"] = torch.randn(2 * 64, 3 * 2 * 4 * 4, generator=generator)
        inputs["image_grid_thw"] = torch.tensor([[1, 8, 8], [1, 8, 8]])
        inputs["mm_token_type_ids"] = (ids == IMAGE_TOKEN).long()
    else:
        size = 16 if name == "llava" else 32
        inputs["pixel_values"] = torch.randn(2, 3, size, size, generator=generator)
    return model, inputs
