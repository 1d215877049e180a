"""A small random model of each family, with its real configuration, model and processor classes.

A head has 16 dimensions, and windows are shorter than a prompt. `unknown` families have no adapter in tdrs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import transformers as hf
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tdrs.backbones.processors import images_only, pixtral_processor

WINDOW = 8
TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3,
}  # fmt: skip
VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
SIDE = {"height": 16, "width": 16}
PINPOINTS = [[16, 32], [32, 16], [32, 32]]
TILES = {"image_grid_pinpoints": PINPOINTS, "size": {"shortest_edge": 16}, "crop_size": SIDE}
ALTERNATE = ["sliding_attention", "full_attention"]


@dataclass(frozen=True)
class Small:
    """How to build a family's small model.

    Attributes:
        special: its special tokens; the first is the image token of the input ids, the second ends an answer.
        template: the chat template.
        build: from the decoder's settings, the ids of the special tokens and the tokenizer, model and processor.
        names: the tokenizer's attributes for special tokens; None for none.
        both_ways: which tokens attend in both directions: `image`, `prompt`, or "" for none.
    """

    special: list[str]
    template: str
    build: Callable[[dict[str, Any], dict[str, int], Any], tuple[Any, Any]]
    names: dict[str, str] | None = None
    both_ways: str = ""


def template(user: str, image: str, end: str, model: str) -> str:
    """A chat template with these marks before a user's turn, for an image, after a turn, before an answer."""
    return (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}MODEL{% else %}USER{% endif %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %}END{% endfor %}{% if add_generation_prompt %}MODEL{% endif %}"
    ).replace("USER", user).replace("IMAGE", image).replace("END", end).replace("MODEL", model)  # fmt: skip


def siglip(**more: Any) -> hf.SiglipVisionConfig:
    return hf.SiglipVisionConfig(**VISION, image_size=16, patch_size=4, vision_use_head=False, **more)


def llava_next(text: dict[str, Any], ids: dict[str, int], made: Any) -> tuple[Any, Any]:
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VISION, image_size=16, patch_size=4),
        text_config=hf.LlamaConfig(**text),
        image_token_index=ids["<image>"],
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
    )
    processor = hf.LlavaNextProcessor(
        LlavaNextImageProcessorPil(**TILES), made, patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision(text: dict[str, Any], ids: dict[str, int], made: Any) -> tuple[Any, Any]:
    config = hf.LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=hf.Qwen2Config(**text),
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        image_grid_pinpoints=PINPOINTS,
    )
    processor = images_only(hf.LlavaOnevisionProcessor)(
        LlavaOnevisionImageProcessorPil(image_grid_pinpoints=PINPOINTS, size=SIDE), made, None, num_image_tokens=16,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def qwen2_vl(text: dict[str, Any], ids: dict[str, int], made: Any) -> tuple[Any, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = hf.Qwen2VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 64, "num_heads": 2, "patch_size": 4},
        **_qwen(ids),
    )
    return hf.Qwen2VLForConditionalGeneration(config), images_only(hf.Qwen2VLProcessor)(_qwen_pictures(), made, None)


def qwen3_vl(text: dict[str, Any], ids: dict[str, int], made: Any) -> tuple[Any, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2], "mrope_interleaved": True}
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4, "out_hidden_size": 64,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    config = hf.Qwen3VLConfig(
        text_config={**text, "head_dim": 16, "rope_parameters": rope}, vision_config=vision, **_qwen(ids)
    )
    return hf.Qwen3VLForConditionalGeneration(config), images_only(hf.Qwen3VLProcessor)(_qwen_pictures(), made, None)


def _qwen(ids: dict[str, int]) -> dict[str, int]:
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }


def _qwen_pictures() -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=1024)


def gemma3(text: dict[str, Any], ids: dict[str, int], made: Any) -> tuple[Any, Any]:
    windows = {"layer_types": ALTERNATE, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**text, head_dim=16, **windows),
        vision_config=siglip(),
        mm_tokens_per_image=4,
        image_token_index=ids["<image_soft_token>"],
        boi_token_index=ids["<start_of_image>"],
        eoi_token_index=ids["<end_of_image>"],
    )
    processor = hf.Gemma3Processor(Gemma3ImageProcessorPil(size=SIDE), made, image_seq_length=4)
    return hf.Gemma3ForConditionalGeneration(config), processor


def paligemma(text: dict[str, Any], ids: dict[str, int], made: Any) -> tuple[Any, Any]:
    pictures = SiglipImageProcessorPil(size=SIDE)
    pictures.image_seq_length = 16
    made.add_special_tokens({"bos_token": "<bos>"})
    processor = hf.PaliGemmaProcessor(pictures, made)  # adds 1152 tokens for places in the picture
    decoder = hf.Gemma2Config(
        **{**text, "vocab_size": len(made)}, head_dim=16, layer_types=ALTERNATE, sliding_window=WINDOW,
        query_pre_attn_scalar=16, attn_logit_softcapping=5.0,
    )  # fmt: skip
    config = hf.PaliGemmaConfig(
        text_config=decoder, vision_config=siglip(), image_token_index=ids["<image>"], projection_dim=64
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def idefics3(text: dict[str, Any], ids: dict[str, int], made: Any) -> tuple[Any, Any]:
    config = hf.Idefics3Config(
        text_config=hf.LlamaConfig(**text),
        vision_config={**VISION, "image_size": 32, "patch_size": 4},
        image_token_id=ids["<image>"],
    )
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return hf.Idefics3ForConditionalGeneration(config), hf.Idefics3Processor(pictures, made, image_seq_len=16)


def smolvlm(text: dict[str, Any], ids: dict[str, int], made: Any) -> tuple[Any, Any]:
    config = hf.SmolVLMConfig(
        text_config=hf.LlamaConfig(**text),
        vision_config={**VISION, "image_size": 32, "patch_size": 4},
        image_token_id=ids["<image>"],
        scale_factor=2,
    )
    pictures = SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = images_only(hf.SmolVLMProcessor)(pictures, made, None, image_seq_len=16)
    return hf.SmolVLMForConditionalGeneration(config), processor


def mistral3(text: dict[str, Any], ids: dict[str, int], made: Any) -> tuple[Any, Any]:
    config = hf.Mistral3Config(
        text_config=hf.MistralConfig(**text, head_dim=16, sliding_window=None),
        vision_config=hf.PixtralVisionConfig(**VISION, image_size=32, patch_size=4),
        image_token_index=ids["[IMG]"],
    )
    pictures = PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size={"height": 4, "width": 4})
    processor = pixtral_processor()(pictures, made, patch_size=4, spatial_merge_size=2)
    return hf.Mistral3ForConditionalGeneration(config), processor


def pixtral(text: dict[str, Any], ids: dict[str, int], made: Any) -> tuple[Any, Any]:
    """As `mistral-community/pixtral-12b`: LLaVA's classes around Pixtral's tower."""
    config = hf.LlavaConfig(
        text_config=hf.MistralConfig(**text, head_dim=16, sliding_window=None),
        vision_config=hf.PixtralVisionConfig(**VISION, image_size=32, patch_size=4),
        image_token_index=ids["[IMG]"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    pictures = PixtralImageProcessorPil(size={"longest_edge": 16}, patch_size={"height": 4, "width": 4})
    return hf.LlavaForConditionalGeneration(config), pixtral_processor()(pictures, made, patch_size=4)


def aya_vision(text: dict[str, Any], ids: dict[str, int], made: Any) -> tuple[Any, Any]:
    """Windows with rotated vectors in pairs, and global layers without rotation."""
    config = hf.AyaVisionConfig(
        vision_config=siglip(),
        text_config=hf.Cohere2Config(**text, layer_types=ALTERNATE, sliding_window=WINDOW),
        image_token_index=ids["<|IMG_PATCH|>"],
    )
    pictures = GotOcr2ImageProcessorPil(size=SIDE, min_patches=1, max_patches=2)
    processor = hf.AyaVisionProcessor(pictures, made, patch_size=4, img_size=16, downsample_factor=2)
    return hf.AyaVisionForConditionalGeneration(config), processor


def glm4v(text: dict[str, Any], ids: dict[str, int], made: Any) -> tuple[Any, Any]:
    """Half of each head is rotated, in pairs."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
    config = hf.Glm4vConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={**vision, "out_hidden_size": 64, "image_size": 32},
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
    )
    sizes: dict[str, Any] = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    pictures = Glm4vImageProcessorPil(**sizes, size={"shortest_edge": 64, "longest_edge": 2048})
    return hf.Glm4vForConditionalGeneration(config), images_only(hf.Glm4vProcessor)(pictures, made, None)


QWEN = ["<|image_pad|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
QWEN_TEMPLATE = template(
    "<|im_start|>user\n", "<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>\n", "<|im_start|>assistant\n"
)
IDEFICS = [
    "<image>", "<end_of_utterance>", "<|im_start|>", "<fake_token_around_image>", "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
]  # fmt: skip
IDEFICS_TEMPLATE = template("<|im_start|>User:", "<image>", "<end_of_utterance>\n", "Assistant:")
GEMMA = ["<image_soft_token>", "<end_of_turn>", "<start_of_turn>", "<start_of_image>", "<end_of_image>"]
MISTRAL = ["[IMG]", "</s>", "[INST]", "[/INST]", "[IMG_BREAK]", "[IMG_END]"]
MISTRAL_TEMPLATE = template("[INST]", "[IMG]", "[/INST]", "")
AYA = [
    "<|IMG_PATCH|>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>", "<image>", "<|START_OF_IMG|>",
    "<|END_OF_IMG|>",
    "<|IMG_LINE_BREAK|>", "TILE_1", "TILE_2", "TILE_GLOBAL",
]  # fmt: skip
GLM = ["<|image|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|begin_of_image|>", "<|end_of_image|>", "<|video|>"]
SMALL: dict[str, Small] = {
    "llava_next": Small(["<image>", "</s>"], template("USER: ", "<image>\n", " ", "ASSISTANT:"), llava_next),
    "llava_onevision": Small(
        ["<image>", "<|im_end|>", "<|im_start|>", "<video>"],
        template("<|im_start|>user ", "<image>\n", "<|im_end|>", "<|im_start|>assistant\n"),
        llava_onevision,
    ),
    "qwen2_vl": Small(QWEN, QWEN_TEMPLATE, qwen2_vl),
    "qwen3_vl": Small(QWEN, QWEN_TEMPLATE, qwen3_vl),
    "gemma3": Small(
        GEMMA,
        template("<start_of_turn>user\n", "<start_of_image>", "<end_of_turn>\n", "<start_of_turn>model\n"),
        gemma3,
        {"image_token": GEMMA[0], "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        both_ways="image",
    ),
    "paligemma": Small(["<image>", "<eos>", "<bos>"], "", paligemma, {"image_token": "<image>"}, both_ways="prompt"),
    "idefics3": Small(IDEFICS, IDEFICS_TEMPLATE, idefics3),
    "smolvlm": Small(IDEFICS, IDEFICS_TEMPLATE, smolvlm),
    "mistral3": Small(MISTRAL, MISTRAL_TEMPLATE, mistral3),
    "pixtral": Small(MISTRAL, MISTRAL_TEMPLATE, pixtral),
    "aya_vision": Small(
        AYA,
        template(
            "<|START_OF_TURN_TOKEN|>User:", "<image>", "<|END_OF_TURN_TOKEN|>", "<|START_OF_TURN_TOKEN|>Assistant:"
        ),
        aya_vision,
    ),
    "glm4v": Small(
        GLM,
        template("<|user|>\n", "<|begin_of_image|><|image|><|end_of_image|>", "", "<|assistant|>\n"),
        glm4v,
    ),
}
UNKNOWN = ("aya_vision", "glm4v")
