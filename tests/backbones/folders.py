"""Folders in the hub's layout of small random models with real processor classes and a tokenizer made on the spot."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tdrs import benchmarks
from tdrs.backbones.families.internvl import InternVLImagesOnly
from tdrs.backbones.families.qwen2_5_vl import Qwen2_5_VLImagesOnly
from tdrs.backbones.processors import save_processor
from tdrs.zoo import mini_internvl, mini_llava, mini_qwen2_5_vl
from tests.attention.architectures import ARCHITECTURES

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


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Words of the embedded benchmarks' prompts, and the special tokens of the architecture."""
    words = {"yes", "no"}
    split = Regex(r"\n|\w+|[^\w\s]")
    for twin in ("mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope"):
        for sample in benchmarks.load(benchmarks.from_settings({"name": twin, "gap": 30}), "tuning", 200):
            found = pre_tokenizers.Split(split, "isolated").pre_tokenize_str(sample.prompt)
            words |= {word for word, _ in found if word.strip() or word == "\n"}
    listed = ["<pad>", "<unk>", *SPECIAL[name], *sorted(words)]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(listed)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed")]
    )
    core.add_special_tokens(SPECIAL[name])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token=SPECIAL[name][1],
        extra_special_tokens=INTERNVL_NAMES if name == "internvl" else SPECIAL[name],
    )


def write(name: str, folder: Path) -> Path:
    """The model's and the processor's files, each saved by its own class, as the hub has them."""
    made = tokenizer(name)
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
        processor = InternVLImagesOnly(pictures, made, None, image_seq_length=16, chat_template=TEMPLATES[name])
    else:
        pixels = {"min_pixels": 64, "max_pixels": 4096}
        pictures = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, **pixels)
        processor = Qwen2_5_VLImagesOnly(pictures, made, None, chat_template=TEMPLATES[name])
    save_processor(processor, folder)
    return folder
