"""mini_llava: architecture, tokenizer and processor, in the folder layout of `llava-hf/llava-1.5-7b-hf`.

The real classes at a small width: a CLIP tower of two layers whose patches are the cells of a scene, the two-layer
projector, a Llama decoder of four layers with grouped queries, and `LlavaProcessor` over a tokenizer of whole words.
Heads are nearly as wide as the real models': rotation disturbs content less where more slow pairs can carry it.
"""

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tdrs.benchmarks import filler, mini_gqa, scenes, signs

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
_PROMPT_WORDS = (
    "USER ASSISTANT Context Question What Which color shape is the object in picture yes no "
    "Answer question using a single word or phrase with option ' s letter from given choices directly "
    "Describe Name letters empty A B C D E . , : ? ! \n "
    "Is Are How many are there objects left right above below of an image "
    "does sign say on number Reference OCR token"
)
# The same text as the hub's template: pictures first, each role in capitals.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def vocabulary() -> list[str]:
    """Every token, special ones first; order is fixed, since it decides the token ids."""
    words = {*_PROMPT_WORDS.split(" "), *filler.WORDS, *scenes.COLORS, *scenes.SHAPES, *mini_gqa.NUMBERS}
    words |= {*signs.LETTERS, *signs.DIGITS, *(f"##{digit}" for digit in signs.DIGITS)}
    words.discard("")
    return SPECIAL + sorted(words)


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, punctuation marks and newlines; `<s>` in front, padding on the left as in the hub's LLaVA.

    What a sign says, "K7" or "42", is a token for its first character and one for the digit that goes on.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordPiece(ids, unk_token="<unk>"))
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), "isolated"),
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
        ]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
        model_max_length=4096,
    )


def processor() -> LlavaProcessor:
    """Pictures of one scene's size in, the expanded image tokens and `pixel_values` out."""
    side = {"height": scenes.SIDE, "width": scenes.SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": scenes.SIDE}, crop_size=side),
        tokenizer=tokenizer(),
        patch_size=scenes.CELL,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def config() -> LlavaConfig:
    """Some 1.2 M parameters: 0.37 M vision, 0.03 M projector, 0.82 M text."""
    words = vocabulary()
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=scenes.SIDE,
            patch_size=scenes.CELL,
            projection_dim=128,
        ),
        text_config=LlamaConfig(
            vocab_size=len(words),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            # 1/√width: at transformers' 0.02, made for widths of thousands, attention starts flat, and matching a word
            # with its option took five times as many steps
            initializer_range=0.088,
            tie_word_embeddings=True,
            pad_token_id=words.index("<pad>"),
            bos_token_id=words.index("<s>"),
            eos_token_id=words.index("</s>"),
        ),
        image_token_index=words.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=scenes.GRID**2,
        tie_word_embeddings=True,
    )


def untrained() -> LlavaForConditionalGeneration:
    """The model at random weights (seed it with `torch.manual_seed`)."""
    return LlavaForConditionalGeneration(config())
