"""mini_llava: architecture, tokenizer and processor, in the folder layout of `llava-hf/llava-1.5-7b-hf`.

The real classes at a small width: a CLIP tower of two layers whose patches are the cells of a scene, the two-layer
projector, a Llama decoder with grouped queries, and `LlavaProcessor`.
"""

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tdrs.benchmarks import scenes
from tdrs.zoo import words

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
# The same text as the hub's template: pictures first, each role in capitals.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def processor() -> LlavaProcessor:
    """Pictures of one scene's size in, the expanded image tokens and `pixel_values` out."""
    side = {"height": scenes.SIDE, "width": scenes.SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": scenes.SIDE}, crop_size=side),
        tokenizer=words.tokenizer(SPECIAL, end="</s>", begin="<s>"),
        patch_size=scenes.CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def untrained() -> LlavaForConditionalGeneration:
    """The model at random weights (seed it with `torch.manual_seed`): 1.0 M parameters."""
    known = words.vocabulary(SPECIAL)
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=scenes.SIDE,
        patch_size=scenes.CELL,
        projection_dim=128,
    )
    text = LlamaConfig(
        **words.decoder_settings(),
        vocab_size=len(known),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=known.index("<pad>"),
        bos_token_id=known.index("<s>"),
        eos_token_id=known.index("</s>"),
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=known.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=scenes.GRID**2,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)
