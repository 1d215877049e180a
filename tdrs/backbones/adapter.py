"""LoRA adapters in PEFT's format: checked before a model is loaded, then merged into its weights.

A merged model is a plain one, so everything else stays as it is. PEFT says nothing about tensors that it does not use,
and fills those that a file lacks with random numbers. Here, each tensor of the file must be used, and each weight
filled.
"""

import hashlib
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors import safe_open
from transformers import PreTrainedModel

from tdrs.backbones.checkpoint import Incomplete, check_pointer, named, read_json, tensor_names
from tdrs.file_hash import file_hash
from tdrs.settings import SettingError, first_line

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
RANDOM_START = "pissa_niter_"  # PEFT takes a part from the weights, and this part is another one in each process
ADDING = ("True", "False", "gaussian", "orthogonal", "eva")  # a start that takes nothing from the weights
PAIR = re.compile(r"(.*)\.lora_(?:embedding_)?[AB](?:\.|$)")
NAME = "default"  # PEFT's own name for a single adapter
# Kinds of LoRA whose weights depend on the tokens, or that change more than the weights, or that were not tested.
REFUSED = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "megatron_config",
    "monteclora_config", "use_bdlora", "use_qalora",
)  # fmt: skip


def check_setting(adapter: str) -> None:
    """Check what is known of an adapter without its weights.

    Args:
        adapter: a folder, or a hub id.

    Raises:
        SettingError: peft is missing, the folder does not exist, or its configuration is not that of a LoRA adapter.
    """
    if find_spec("peft") is None:
        raise SettingError("adapter", adapter, "needs peft: pip install peft")
    path = Path(adapter).expanduser()
    if not path.is_dir() and (adapter.startswith((".", "/", "~")) or adapter.count("/") != 1):
        raise SettingError("adapter", adapter, "no such folder, and not a hub id (owner/name)")
    if path.is_dir():
        with _named(adapter):
            _check_config(path)


@contextmanager
def _named(adapter: str) -> Iterator[None]:
    """Name the adapter in errors that say what is wrong with its files."""
    try:
        yield
    except Incomplete as error:
        raise SettingError("adapter", adapter, str(error)) from None


def folder_of(adapter: str) -> Path:
    """The folder with an adapter's files: its own, or that of its newest commit in the hub's cache.

    Raises:
        SettingError: it is not in the cache, and the hub does not provide it.
    """
    path = Path(adapter).expanduser()
    return path if path.is_dir() else _downloaded(adapter)


@lru_cache
def _downloaded(adapter: str) -> Path:
    try:
        for name in (CONFIG, WEIGHTS):
            path = hf_hub_download(adapter, name)
        return Path(path).parent
    except Exception as error:  # of the network, of the hub, of the cache
        todo = f"`hf download {adapter}` with a network connection, or a folder with {CONFIG} and {WEIGHTS}"
        why = f"is not in {HF_HUB_CACHE}, and the hub does not provide it ({first_line(error)}); {todo}"
        raise SettingError("adapter", adapter, why) from error


def fingerprint(adapter: str) -> str:
    """A hash of an adapter's two files. Raises the errors of `folder_of` and `check_files`."""
    folder = folder_of(adapter)
    with _named(adapter):
        _check_files(folder)
    digest = hashlib.sha256("".join(file_hash(folder / name) for name in (CONFIG, WEIGHTS)).encode())
    return digest.hexdigest()[:16]


def other_base(adapter: str, source: str) -> str:
    """A note if an adapter names another base model than the one it is merged into; else ""."""
    with _named(adapter):
        base = read_json(folder_of(adapter) / CONFIG).get("base_model_name_or_path") or ""
    if not base or Path(base).name == Path(source.removeprefix("embedded:")).name:
        return ""
    return f"the adapter {adapter} was made for {base}, and is merged into {source}"


def without_effect(adapter: str) -> str:
    """A note if an adapter changes no weight, as one that was saved before training; else ""."""
    return _without_effect(adapter, fingerprint(adapter))


@lru_cache
def _without_effect(adapter: str, content: str) -> str:
    """`without_effect`, which reads all tensors: once for each content of the files."""
    folder = folder_of(adapter)
    with _named(adapter):
        config = read_json(folder / CONFIG)
        if str(config.get("init_lora_weights", True)) not in ADDING:
            return ""
        by_module: dict[str, bool] = {}  # whether the product of a module's two matrices is zero
        with safe_open(folder / WEIGHTS, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it has no other iterator
                pair = PAIR.match(name)
                if not pair:
                    return ""
                by_module[pair[1]] = by_module.get(pair[1], False) or not file.get_tensor(name).any()
    if all(by_module.values()):
        return f"the adapter {adapter} changes no weight: one matrix of each pair is zero, as before training"
    if not config.get("lora_alpha", 8) and not config.get("alpha_pattern"):
        return f"the adapter {adapter} changes no weight: its lora_alpha is 0"
    return ""


def check_files(adapter: str) -> None:
    """Check an adapter's files and values.

    Raises:
        SettingError: a file is missing or damaged, is no LoRA adapter that can be merged, or holds NaN or infinity.
    """
    folder = folder_of(adapter)
    with _named(adapter):
        _check_files(folder)
        with safe_open(folder / WEIGHTS, "pt") as file:
            names = list(file.keys())
            broken = [name for name in names if not file.get_tensor(name).isfinite().all()]
        if broken:
            raise Incomplete(f"{WEIGHTS} holds NaN or infinite numbers: {named(broken)}")


def _check_files(folder: Path) -> None:
    _check_config(folder)
    path = folder / WEIGHTS
    if not path.exists():
        pickle = f"; {PICKLE} is a pickle, which can run code and is not read: save it as safetensors"
        raise Incomplete(f"no {WEIGHTS}{pickle if (folder / PICKLE).exists() else ''}")
    check_pointer(path)
    if not tensor_names(path):
        raise Incomplete(f"{WEIGHTS} has no tensors")


def _check_config(folder: Path) -> None:
    from peft import LoraConfig, __version__  # takes seconds, and few runs have an adapter

    if not (folder / CONFIG).exists():
        whole = ": it is a whole model, which backbone.source takes" if (folder / "config.json").exists() else ""
        raise Incomplete(f"no {CONFIG} in the folder{whole}")
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise Incomplete(f"{CONFIG} has peft_type {config.get('peft_type')!r}; only LORA can be merged")
    known = {field.name for field in fields(LoraConfig)}
    unknown = sorted(name for name, value in config.items() if name not in known and value)
    if unknown:
        raise Incomplete(f"{CONFIG} has {named(unknown)}, which peft {__version__} does not know")
    refused = sorted(name for name in REFUSED if config.get(name))
    if refused:
        raise Incomplete(f"{CONFIG} has {named(refused)}: such an adapter is not merged here")
    start = str(config.get("init_lora_weights"))
    if start.startswith(RANDOM_START):
        again = "save it again with path_initial_model_for_weight_conversion, as a plain LoRA adapter"
        raise Incomplete(
            f"{CONFIG} has init_lora_weights {start!r}: it was trained on weights drawn at random; {again}"
        )


def merge(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """Merge an adapter into a model's weights, in the model's dtype; return the model.

    Raises:
        SettingError: a tensor of the adapter is not used, is missing or has another shape, or it cannot be merged.
    """
    with _named(adapter), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is an error here
        return _merge(model, folder_of(adapter))


def _merge(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    from peft import LoraConfig, PeftModel

    own = {id(weight) for weight in model.parameters()}
    try:
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted: Any = PeftModel(model, config, NAME)
        # the model's own weights that the file has, too
        kept = {"all": "bias", "lora_only": ".base_layer.bias"}.get(config.bias)
        new = {
            name: weight
            for name, weight in adapted.named_parameters()
            if id(weight) not in own or (kept and name.endswith(kept))
        }
        for weight in new.values():
            weight.data.fill_(torch.nan)
        _check_ties(adapted, new)
        mapping = getattr(model, "_checkpoint_conversion_mapping", {})
        loaded = adapted.load_adapter(str(folder), NAME, torch_device="cpu", key_mapping=mapping)
    except KeyError as error:
        raise Incomplete(f"{WEIGHTS} lacks {error.args[0]}") from error
    except Exception as error:  # PEFT does not check the values of a configuration
        wrong = re.findall(r"size mismatch for ([^:\s]+)", str(error))
        if wrong:
            raise Incomplete(f"{WEIGHTS} has another shape of {named(map(_plain, wrong))}") from error
        raise Incomplete(f"cannot be put into the model ({first_line(error)})") from error
    if loaded.unexpected_keys:
        unknown = named(map(_plain, loaded.unexpected_keys))
        raise Incomplete(f"{WEIGHTS} has tensors that the model does not know: {unknown}")
    empty = [_plain(name) for name, weight in new.items() if weight.isnan().any()]
    if empty:
        raise Incomplete(f"{WEIGHTS} lacks {named(empty)}")
    try:
        merged: PreTrainedModel = adapted.merge_and_unload()
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise Incomplete(f"cannot be merged ({first_line(error)})") from error
    return merged


def _check_ties(adapted: Any, new: dict[str, torch.nn.Parameter]) -> None:
    """Raises Incomplete if the adapter changes a weight that the model also uses elsewhere: merged, it changes both."""
    uses: dict[int, list[str]] = defaultdict(list)
    for name, weight in adapted.named_parameters(remove_duplicate=False):
        uses[id(weight)].append(name)
    changed = {name.partition(".lora_")[0] for name in new if ".lora_" in name}
    for names in uses.values():
        targets = [name for name in names if name.removesuffix(".base_layer.weight") in changed]
        if targets and len(names) > 1:
            other = next(name for name in names if name != targets[0])
            tied = f"{_plain(targets[0])}, which is the same weight as {_plain(other)}"
            raise Incomplete(f"changes {tied}: merged, it would change both")


def _plain(name: str) -> str:
    """A weight's name without what PEFT adds to it."""
    return name.removeprefix("base_model.model.").replace(f".{NAME}", "").replace(".base_layer", "")
