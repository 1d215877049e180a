"""The embedded models' tokenizer: whole words of a closed vocabulary, so that a token is a word everywhere."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from tdrs.benchmarks import filler, mini_gqa, scenes, signs

_PROMPT_WORDS = (
    "USER ASSISTANT system user assistant You helpful Context Hint Question Options What Which color shape is the "
    "object in picture yes no Answer question using a single word or phrase with option ' s letter from given choices "
    "directly Please select correct answer options above Describe Name letters empty A B C D E . , : ? ! \n "
    "Is Are How many are there objects left right above below of an image side top bottom at on "
    "does sign say number Reference OCR token"
)


def vocabulary(special: Sequence[str]) -> list[str]:
    """Every token, special ones first; order is fixed, since it decides the token ids."""
    words = {*_PROMPT_WORDS.split(" "), *filler.WORDS, *scenes.COLORS, *scenes.SHAPES, *mini_gqa.NUMBERS}
    words |= {*signs.LETTERS, *signs.DIGITS, *(f"##{digit}" for digit in signs.DIGITS)}
    words.discard("")
    return [*special, *sorted(words)]


def tokenizer(special: Sequence[str], end: str, begin: str | None = None, **names: str) -> PreTrainedTokenizerFast:
    """Whole words, punctuation marks and newlines, padded on the left.

    The text of a sign, such as "K7" or "42", is one token for its first character and one for a digit after it.

    Args:
        special: the special tokens, `<pad>` and `<unk>` among them.
        end: the token that ends an answer.
        begin: the token in front of every text; None for none.
        names: attributes of the tokenizer, each with its special token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate(vocabulary(special))}
    core = Tokenizer(models.WordPiece(ids, unk_token="<unk>"))
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), "isolated"),
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
        ]
    )
    core.add_special_tokens(list(special))
    if begin:
        core.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, ids[begin])]
        )
    own = {"bos_token": begin} if begin else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=end,
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=names or [name for name in special if name not in ("<pad>", "<unk>", begin, end)],
        padding_side="left",
        model_max_length=4096,
        **own,
    )


def decoder_settings() -> dict[str, Any]:
    """What the three text decoders have in common: four layers, width 128, four heads of 32, two key/value heads."""
    return {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        # 1/√width: at transformers' 0.02, made for widths of thousands, attention starts flat, and matching a word
        # with its option took five times as many steps
        "initializer_range": 0.088,
        "tie_word_embeddings": True,
    }
