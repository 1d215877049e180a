"""Folders in the hub's layout of small random models with real processor classes and a tokenizer made on the spot."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import InternVLProcessor, LlavaProcessor, PreTrainedTokenizerFast, Qwen2_5_VLProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tdrs import benchmarks
from tdrs.backbones.processors import images_only, save_processor
from tdrs.zoo import mini_internvl, mini_llava, mini_qwen2_5_vl
from tests.attention.architectures import ARCHITECTURES
from tests.backbones.small import SMALL, TEXT, Small

TEMPLATES = {  # the hub's texts
    "llava": mini_llava.CHAT_TEMPLATE,
    "internvl": mini_internvl.CHAT_TEMPLATE,
    "qwen2_5_vl": mini_qwen2_5_vl.CHAT_TEMPLATE,
}
SPECIAL = {
    "llava": ["<image>", "</s>"],
    "internvl": ["<IMG_CONTEXT>", "<|im_end|>", "<|im_start|>", "<img>", "</img>", "<video>"],
    "qwen2_5_vl": [
        "<|image_pad|>",
        "<|im_end|>",
        "<|im_start|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|video_pad|>",
    ],
}
INTERNVL_NAMES = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


SPLIT = Regex(r"\n|\w+|[^\w\s]")


@cache
def words() -> list[str]:
    """The words of the embedded benchmarks' prompts."""
    known = {"yes", "no"}
    for twin in ("mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope"):
        for sample in benchmarks.load(benchmarks.from_settings({"name": twin, "gap": 30}), "tuning", 200):
            found = pre_tokenizers.Split(SPLIT, "isolated").pre_tokenize_str(sample.prompt)
            known |= {word for word, _ in found if word.strip() or word == "\n"}
    return sorted(known)


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Words of the embedded benchmarks' prompts, and the special tokens of the architecture."""
    special = SPECIAL[name] if name in SPECIAL else SMALL[name].special
    names = {"internvl": INTERNVL_NAMES}.get(name) or (SMALL[name].names if name in SMALL else None) or special
    listed = ["<pad>", "<unk>", *special, *words()]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(listed)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(SPLIT, "isolated"), pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")]
    )
    core.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token=special[1],
        extra_special_tokens=names,
    )


def write(name: str, folder: Path) -> Path:
    """The model's and the processor's files, each saved by its own class, as the hub has them."""
    made = tokenizer(name)
    if name in SMALL:
        return _write_small(SMALL[name], made, folder)
    ids = {token: made.convert_tokens_to_ids(token) for token in SPECIAL[name]}
    special = {"size": len(made), "image": ids[SPECIAL[name][0]], "end": ids[SPECIAL[name][1]], "pad": 0}
    if name == "qwen2_5_vl":
        special |= {"video": ids["<|video_pad|>"], "start": ids["<|vision_start|>"]}
    torch.manual_seed(0)
    model: Any = ARCHITECTURES[name](**special)
    model.save_pretrained(folder)
    processor: Any
    pictures: Any
    if name == "llava":
        side = {"height": 16, "width": 16}
        processor = LlavaProcessor(
            CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side),
            made,
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=TEMPLATES[name],
        )
    elif name == "internvl":
        pictures = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, min_patches=1, max_patches=4)
        processor = images_only(InternVLProcessor)(
            pictures, made, None, image_seq_length=16, chat_template=TEMPLATES[name]
        )
    else:
        pixels = {"min_pixels": 64, "max_pixels": 4096}
        pictures = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, **pixels)
        processor = images_only(Qwen2_5_VLProcessor)(pictures, made, None, chat_template=TEMPLATES[name])
    save_processor(processor, folder)
    return folder


def _write_small(small: Small, made: PreTrainedTokenizerFast, folder: Path) -> Path:
    torch.manual_seed(0)
    ids = {token: made.convert_tokens_to_ids(token) for token in small.special}
    text = {
        **TEXT,
        "vocab_size": len(made),
        "bos_token_id": None,
        "eos_token_id": ids[small.special[1]],
        "pad_token_id": 0,
    }
    model, processor = small.build(text, ids, made)
    processor.chat_template = small.template or None
    model.save_pretrained(folder)
    save_processor(processor, folder)
    return folder
