"""mini_internvl: architecture, tokenizer and processor, in the folder layout of `OpenGVLab/InternVL2_5-8B-MPO-hf`.

The real classes at a small width: an InternViT of two layers whose patches are the quarters of a scene's cells, pixel
shuffle, which makes one token of each cell, the two-layer projector, a Llama decoder (InternVL2-8B's InternLM2 is a
Llama by another name), and `InternVLProcessor`, which cuts a picture that is not square into tiles.
"""

from typing import Any

from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVisionConfig,
    LlamaConfig,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tdrs.backbones.processors import images_only
from tdrs.benchmarks import scenes
from tdrs.zoo import words

SPECIAL = ["<pad>", "<s>", "<|im_end|>", "<unk>", "<IMG_CONTEXT>", "<|im_start|>", "<img>", "</img>", "<video>"]
# The hub's text: each turn between its marks, pictures where they stand in it, no system prompt unless one is given.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<IMG_CONTEXT>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def processor() -> Any:
    """Pictures in, as tiles of one scene's size; the expanded image tokens and `pixel_values` out."""
    return images_only(InternVLProcessor)(
        GotOcr2ImageProcessorPil(
            size={"height": scenes.SIDE, "width": scenes.SIDE}, crop_to_patches=True, min_patches=1, max_patches=6
        ),
        words.tokenizer(
            SPECIAL,
            end="<|im_end|>",
            start_image_token="<img>",
            end_image_token="</img>",
            context_image_token="<IMG_CONTEXT>",
            video_token="<video>",
        ),
        None,
        image_seq_length=scenes.GRID**2,
        chat_template=CHAT_TEMPLATE,
    )


def untrained() -> InternVLForConditionalGeneration:
    """The model at random weights (seed it with `torch.manual_seed`)."""
    known = words.vocabulary(SPECIAL)
    vision = InternVLVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=[scenes.SIDE, scenes.SIDE],
        patch_size=[scenes.CELL // 2, scenes.CELL // 2],
    )
    text = LlamaConfig(
        **words.decoder_settings(),
        vocab_size=len(known),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=known.index("<pad>"),
        bos_token_id=known.index("<s>"),
        eos_token_id=known.index("<|im_end|>"),
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=known.index("<IMG_CONTEXT>"),
        image_seq_length=scenes.GRID**2,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
    return InternVLForConditionalGeneration(config)
