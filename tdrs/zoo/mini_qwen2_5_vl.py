"""mini_qwen2_5_vl: architecture, tokenizer and processor, in the folder layout of `Qwen/Qwen2.5-VL-7B-Instruct`.

The real classes at a small width: Qwen2.5-VL's tower with its own two-dimensional rotation, windows and one layer over
the whole picture, dynamic resolution (a token for each cell of 16 x 16 pixels), the merger, a decoder with biases and
M-RoPE, which gives an image token a time, a row and a column, and `Qwen2_5_VLProcessor`.
"""

from typing import Any

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tdrs.backbones.processors import images_only
from tdrs.benchmarks import scenes
from tdrs.zoo import words

SPECIAL = [
    "<pad>", "<|im_end|>", "<unk>", "<|image_pad|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>",
    "<|video_pad|>",
]  # fmt: skip
# The hub's text: a system prompt in front where none is given, each turn between its marks.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def processor() -> Any:
    """Pictures of 4 to 64 cells in; the expanded image tokens, `pixel_values`, `image_grid_thw` and token types out."""
    return images_only(Qwen2_5_VLProcessor)(
        Qwen2VLImageProcessorPil(
            patch_size=scenes.CELL // 2,
            merge_size=2,
            temporal_patch_size=2,
            min_pixels=4 * scenes.CELL**2,
            max_pixels=64 * scenes.CELL**2,
        ),
        words.tokenizer(SPECIAL, end="<|im_end|>"),
        None,
        chat_template=CHAT_TEMPLATE,
    )


def untrained() -> Qwen2_5_VLForConditionalGeneration:
    """The model at random weights (seed it with `torch.manual_seed`)."""
    known = words.vocabulary(SPECIAL)
    ids = {name: known.index(name) for name in SPECIAL}
    text = {
        **words.decoder_settings(),
        "vocab_size": len(known),
        # of a head's 16 pairs: time, rows, columns in the real model's proportion of 16 : 24 : 24
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "pad_token_id": ids["<pad>"],
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "depth": 2,
        "num_heads": 4,
        "out_hidden_size": 128,
        "patch_size": scenes.CELL // 2,
        "window_size": 2 * scenes.CELL,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)
