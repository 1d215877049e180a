"""Is a model's folder whole? Files that are cut off, pointers to files, and tensors that are missing, by name.

transformers fills a tensor that a checkpoint lacks with random numbers, and says so in a log that nobody reads.
"""

import json
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LFS = b"version https://git-lfs"
# Buffers that earlier versions saved and present ones compute; a checkpoint may have them.
COMPUTED = re.compile(r"(^|\.)(position_ids|rotary_emb\.inv_freq)$")


class Incomplete(ValueError):
    """A model's folder, or what was loaded from it, lacks something; the message says what, in one line."""


def check_files(folder: Path) -> None:
    """Raises Incomplete if a file of a model's folder is missing, cut off, garbled, or a pointer to another."""
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                raise Incomplete(f"{path.name} is a git-lfs pointer, not the file: `git lfs pull` brings it")
        if path.suffix == ".json":
            _json(path)
    if not any((folder / name).exists() for name in ("processor_config.json", "preprocessor_config.json")):
        raise Incomplete("no processor_config.json or preprocessor_config.json, which say how pictures are prepared")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        _check_shards(folder, _json(index))
    elif (folder / "model.safetensors").exists():
        _tensors(folder / "model.safetensors")
    else:
        raise Incomplete("no model.safetensors and no model.safetensors.index.json")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Incomplete(f"{path.name} is no JSON ({error})") from error


def _tensors(path: Path) -> set[str]:
    """The names in a file of weights, whose size must be what its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= size - 8:
            raise Incomplete(f"{path.name} is cut off or garbled: {size} bytes without a whole header")
        try:
            header = json.loads(file.read(length))
            names = set(header) - {"__metadata__"}
            end = max((header[name]["data_offsets"][1] for name in names), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Incomplete(f"{path.name} has a garbled header") from error
    if size != 8 + length + end:
        raise Incomplete(f"{path.name} has {size} bytes where its header says {8 + length + end}: it is cut off")
    return names


def _check_shards(folder: Path, index: Any) -> None:
    """Every file that an index names is there, with the tensors that the index says it has."""
    places: dict[str, set[str]] = {}
    try:
        for name, file in index["weight_map"].items():
            places.setdefault(file, set()).add(name)
    except (KeyError, TypeError, AttributeError) as error:
        raise Incomplete("model.safetensors.index.json has no weight_map") from error
    gone = sorted(file for file in places if not (folder / file).is_file())
    if gone:
        raise Incomplete(f"{named(gone)} of {len(places)} files of weights missing")
    for file, names in places.items():
        lacking = names - _tensors(folder / file)
        if lacking:
            raise Incomplete(f"{file} lacks {named(lacking)}, which the index says it has")


def check_tensors(info: Any) -> None:
    """Raises Incomplete unless all tensors were loaded, and only those.

    Args:
        info: what `from_pretrained(output_loading_info=True)` says.
    """
    wrong = [
        ("lacks", set(info["missing_keys"])),
        ("has another shape of", {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}),
        ("has beside what the model knows", {key for key in info["unexpected_keys"] if not COMPUTED.search(key)}),
        ("cannot give", set(info.get("error_msgs", ()))),
    ]
    said = "; ".join(f"{what} {named(keys)}" for what, keys in wrong if keys)
    if said:
        raise Incomplete(f"the checkpoint {said}")


def named(keys: Iterable[str]) -> str:
    """Up to three names, and how many more there are."""
    ordered = sorted(keys)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
