"""Checks of a model's folder: truncated files, pointers instead of files, and missing tensors are named.

transformers fills a tensor that is missing from a checkpoint with random numbers, and says so only in a log.
"""

import json
import math
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tdrs.backbones.families import family_of, is_language_model
from tdrs.settings import first_line

# The files of a folder that transformers reads as JSON; other JSON files do not matter.
READ = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json", "vocab.json",
    "model.safetensors.index.json",
)  # fmt: skip
LFS = b"version https://git-lfs"
IS_ADAPTER = "has an adapter_config.json: an adapter is backbone.adapter, and backbone.source its base model"
# Buffers that earlier versions saved and current ones compute; a checkpoint may have them.
COMPUTED = re.compile(r"(^|\.)(position_ids|rotary_emb\.inv_freq)$")


class Incomplete(ValueError):
    """Something is missing from a model's folder or from the loaded model; the message names it in one line."""


def check_files(folder: Path, whole: bool = True) -> None:
    """Raises Incomplete if a file of a model's folder is missing, truncated, garbled, or a pointer to another file.

    Args:
        whole: whether every file must be there. In the hub's cache, files arrive one by one.
    """
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        check_pointer(path)
        if path.name in READ:
            read_json(path)
    if (folder / "adapter_config.json").exists():
        raise Incomplete(IS_ADAPTER)
    _check_weights(folder, whole)
    if not whole:
        return
    pictures = not is_language_model(str(read_json(folder / "config.json").get("model_type")))
    if pictures and not any((folder / name).exists() for name in ("processor_config.json", "preprocessor_config.json")):
        raise Incomplete("no processor_config.json or preprocessor_config.json, which say how pictures are prepared")
    for names in (("tokenizer_config.json",), ("tokenizer.json", "tokenizer.model", "vocab.json")):
        if not any((folder / name).exists() for name in names):
            raise Incomplete(f"no {' or '.join(names)}: copy the tokenizer's files from the model this was made of")


def check_pointer(path: Path) -> None:
    """Raises Incomplete if a file is a pointer of git-lfs to another file."""
    with path.open("rb") as file:
        if file.read(len(LFS)) == LFS:
            raise Incomplete(f"{path.name} is a git-lfs pointer, not the file: `git lfs pull` downloads it")


def _check_weights(folder: Path, whole: bool) -> None:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.exists():  # transformers takes it before an index
        tensor_names(single)
    elif index.exists():
        _check_shards(folder, read_json(index), whole)
    elif whole:
        raise Incomplete("no model.safetensors and no model.safetensors.index.json")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises Incomplete if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Incomplete(f"{path.name} is not JSON ({first_line(error)})") from error
    if not isinstance(found, dict):
        raise Incomplete(f"{path.name} contains no JSON object")
    return found


def tensor_names(path: Path) -> set[str]:
    """The names of the tensors in a file, whose size must be the one in its header."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= size - 8:
            raise Incomplete(f"{path.name} is cut off or garbled: {size} bytes without a complete header")
        try:
            header = json.loads(file.read(length))
            names = set(header) - {"__metadata__"}
            end = max((header[name]["data_offsets"][1] for name in names), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Incomplete(f"{path.name} has a garbled header") from error
    if size != 8 + length + end:
        raise Incomplete(f"{path.name} has {size} bytes where its header says {8 + length + end}: it is cut off")
    return names


def _check_shards(folder: Path, index: Any, whole: bool) -> None:
    """Every file that an index names must be there, with the tensors that the index assigns to it."""
    files: dict[str, set[str]] = {}
    try:
        for name, file in index["weight_map"].items():
            files.setdefault(file, set()).add(name)
    except (KeyError, TypeError, AttributeError) as error:
        raise Incomplete("model.safetensors.index.json has no weight_map") from error
    gone = sorted(file for file in files if not (folder / file).is_file())
    if any(Path(file).name != file for file in files):  # the fingerprint covers only the folder's own files
        raise Incomplete("model.safetensors.index.json names files outside of the folder")
    if gone and whole:
        raise Incomplete(f"{named(gone)} of {len(files)} files of weights missing")
    for file in sorted(files.keys() - set(gone)):
        names = files[file]
        lacking = names - tensor_names(folder / file)
        if lacking:
            raise Incomplete(f"{file} lacks {named(lacking)}, which the index says it has")


def check_tensors(info: Any) -> None:
    """Raises Incomplete unless exactly the model's tensors were loaded.

    Args:
        info: the loading info of `from_pretrained(output_loading_info=True)`.
    """
    unknown = {key for key in info["unexpected_keys"] if not COMPUTED.search(key)}
    wrong = [
        ("lacks", set(info["missing_keys"])),
        ("has another shape of", {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}),
        ("has tensors that the model does not know:", unknown),
        ("cannot give", set(info.get("error_msgs", ()))),
    ]
    said = "; ".join(f"{what} {named(keys)}" for what, keys in wrong if keys)
    if said:
        raise Incomplete(f"the checkpoint {said}")


def check_values(model: PreTrainedModel) -> None:
    """Raises Incomplete if a weight contains NaN or an infinite number, or a matrix contains only zeros.

    A download that reserves its space on the disk and is then interrupted leaves zeros.
    """
    matrices = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    # `spread` keeps those on the meta device on the disk
    weights = ((name, weight) for name, weight in model.named_parameters() if not weight.is_meta)
    check_weights(weights, matrices.__contains__, f", in {str(model.dtype)[6:]}")


def check_weights(
    weights: Iterable[tuple[str, torch.Tensor]], is_matrix: Callable[[str], bool], where: str = ""
) -> None:
    """Raises Incomplete if a weight contains NaN or an infinite number, or a matrix contains only zeros.

    Args:
        weights: floating-point tensors by name.
        is_matrix: whether a name is that of a linear layer's matrix.
        where: stands in the message after what is wrong.
    """
    broken, empty = [], []
    for name, weight in weights:
        if not weight.numel():
            continue
        low, high = (float(end) for end in weight.detach().aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            broken.append(name)
        elif low == high == 0 and is_matrix(name):
            empty.append(name)
    if broken:
        raise Incomplete(f"the weights hold NaN or infinite numbers{where}: {named(broken)}")
    if empty:
        raise Incomplete(f"the weights are all zero in {named(empty)}: the file was not written to its end")


def check_processor(processor: Any, config: Any) -> None:
    """Raises Incomplete if the tokenizer or the processor belongs to another model than the configuration."""
    if not is_language_model(config.model_type):
        known = getattr(processor, "image_token_ids", None) or [processor.image_token_id]
        if config.image_token_id not in known:
            token = f"{processor.image_token!r}, {known[0]},"
            raise Incomplete(f"the tokenizer's image token is {token} and {config.image_token_id} in config.json")
    size = max(processor.tokenizer.get_vocab().values()) + 1
    if size > config.get_text_config().vocab_size:
        rows = config.get_text_config().vocab_size
        raise Incomplete(f"the tokenizer has {size} tokens, and vocab_size is {rows} in config.json")
    for name, value in family_of(config.model_type).processor_values(config).items():
        given = getattr(processor, name)
        if given != value:
            raise Incomplete(f"{name} is {given} in processor_config.json, or by default, and the model needs {value}")


def named(keys: Iterable[str]) -> str:
    """Up to three names, and the number of the others."""
    ordered = sorted(keys)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
