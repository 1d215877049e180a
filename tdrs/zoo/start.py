"""Start one embedded model from another one: all of it, or its text decoder."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from tdrs.backbones.backbone_settings import EMBEDDED
from tdrs.backbones.checkpoint import check_tensors
from tdrs.settings import SettingError, first_line


@torch.no_grad()
def start_from(source: str, model: Any, tokenizer: Any) -> None:
    """Copy a trained model into `model`: all of it if both are of one class, else the text decoder.

    A decoder is copied weight by weight of the same name, and its embedding word by word. Weights that only the new
    decoder has (biases) are set to zero, words that only it knows stay as they are.

    Args:
        source: the folder of the trained model, or `embedded:NAME`.

    Raises:
        SettingError: the folder holds no model, or its decoder has other widths.
    """
    embedded = source.startswith("embedded:")
    folder = EMBEDDED / source.removeprefix("embedded:") if embedded else Path(source).expanduser()
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        given, info = loaded
        check_tensors(info)
        old = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).get_vocab()
    except (OSError, ValueError) as error:
        raise SettingError("recipe.start", source, first_line(error)) from error
    if type(given) is type(model):
        try:
            model.load_state_dict(given.state_dict())
        except RuntimeError as error:
            raise SettingError("recipe.start", source, first_line(error)) from error
        return
    theirs = given.model.language_model.state_dict()
    own = model.model.language_model.state_dict()
    for name, weight in own.items():
        if name == "embed_tokens.weight":
            continue
        if name in theirs and theirs[name].shape != weight.shape:
            shapes = " not ".join(str(tuple(found.shape)) for found in (theirs[name], weight))
            raise SettingError("recipe.start", source, f"its {name} is {shapes}")
        weight.copy_(theirs[name] if name in theirs else torch.zeros_like(weight))
    for word, number in tokenizer.get_vocab().items():
        if word in old:
            own["embed_tokens.weight"][number] = theirs["embed_tokens.weight"][old[word]]
