"""Which model, and how it runs: the settings of a backbone, checked before anything is loaded."""

import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from transformers import AutoConfig

from tdrs.backbones import adapter as adapters
from tdrs.backbones.checkpoint import IS_ADAPTER, Incomplete, check_files, read_json
from tdrs.backbones.families import TRANSPARENCY, check_image_setting, is_language_model
from tdrs.backbones.processors import several_fault, size_fault
from tdrs.backbones.quantisation import METHOD, VALUES, bits_of, check_bits
from tdrs.benchmarks.benchmark import Size
from tdrs.benchmarks.prompts import STYLES
from tdrs.environment import version, versions
from tdrs.file_hash import file_hash
from tdrs.settings import SettingError, build, check_choice, check_number, first_line

EMBEDDED = Path(__file__).parent.parent / "zoo" / "models"
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "spread")


@dataclass(frozen=True)
class BackboneSettings:
    """Which model, and how it runs.

    Args:
        name: a name for tables and figures.
        source: `embedded:NAME`, a local folder in the hub's layout, or a hub id (owner/name).
        revision: the hub commit; None is the newest.
        device: `auto` is cuda if there is a CUDA device, else cpu. `spread` distributes the layers over all GPUs, and
            puts those that do not fit on the CPU (it needs accelerate).
        dtype: `auto` is bfloat16 on cuda and float32 on the CPU.
        attention: the model's own attention implementation, `sdpa` or `eager`, which unedited layers use.
        prompt_style: the prompt style of the model's own evaluation; a data set's `prompt` overrides it.
        max_new_tokens: the length of the longest answer; None is that of the style's toolkit for each benchmark.
        system: the system prompt; None is the chat template's own; "" is none, if the template allows it.
        transparency: what to do with a transparent picture. `family`: as the code of the model's family does; `drop`:
            drop the transparency, which shows the colour stored beneath it; `white`: put the picture on white.
        image: how pictures are prepared, by the families' `image_settings`: `do_pad` (LLaVA), `min_patches` and
            `max_patches` (InternVL's tiles), `min_pixels` and `max_pixels` (Qwen), `longest_edge` (Mistral),
            `do_pan_and_scan` (Gemma 3), `do_image_splitting` (Idefics3). What is not set is as in the model's folder.
        adapter: a LoRA adapter in PEFT's format, which is merged into the weights: a folder with adapter_config.json
            and adapter_model.safetensors, or a hub id; None is none (it needs peft).
        bits: the bits of a weight, 8 or 4, by bitsandbytes, which quantises the weights when they are loaded; None is
            that of the model's folder.

    Raises:
        SettingError: a value is not allowed, or a device or a folder does not exist.
    """

    name: str
    source: str
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "sdpa"
    prompt_style: str = "llava"
    max_new_tokens: int | None = None
    system: str | None = None
    transparency: str = "family"
    image: dict[str, Any] = field(default_factory=dict, hash=False)
    adapter: str | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        check_choice("device", self.device, DEVICES)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("attention", self.attention, ("sdpa", "eager"))
        check_choice("prompt_style", self.prompt_style, STYLES)
        check_choice("transparency", self.transparency, TRANSPARENCY)
        for name, value in self.image.items():
            check_image_setting(name, value)
        if self.max_new_tokens is not None:
            check_number("max_new_tokens", self.max_new_tokens, 1, whole=True)
        if self.device == "spread" and find_spec("accelerate") is None:
            raise SettingError("device", self.device, "needs accelerate: pip install accelerate")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SettingError("device", self.device, "no CUDA device is available here; use cpu")
        if self.source.startswith("embedded:"):
            known = sorted(folder.name for folder in EMBEDDED.iterdir() if (folder / "config.json").exists())
            check_choice("source", self.source, [f"embedded:{name}" for name in known])
        elif not self.folder.is_dir() and (self.source.startswith((".", "/", "~")) or self.source.count("/") != 1):
            raise SettingError("source", self.source, "no such folder, and not a hub id (owner/name)")
        elif self.folder.is_dir() and not (self.folder / "config.json").exists():
            is_adapter = (self.folder / adapters.CONFIG).exists()
            raise SettingError("source", self.source, IS_ADAPTER if is_adapter else "the folder has no config.json")
        if self.adapter is not None:
            if self.device == "spread":
                raise SettingError("adapter", self.adapter, "cannot be merged into a model with device=spread")
            if self.bits is not None:
                raise SettingError("adapter", self.adapter, f"cannot be merged into weights of bits={self.bits}")
            adapters.check_setting(self.adapter)
        if self.bits is not None:
            check_bits(self.bits)

    @property
    def folder(self) -> Path:
        """The path of the local folder, even if it does not exist."""
        if self.source.startswith("embedded:"):
            return EMBEDDED / self.source.removeprefix("embedded:")
        return Path(self.source).expanduser()

    @property
    def location(self) -> str:
        """What transformers' classes receive: the path of the local folder if it exists, else the hub id."""
        return str(self.folder.absolute()) if self.folder.is_dir() else self.source

    @property
    def commit(self) -> str | None:
        """The commit that a hub id stands for, so that all files come from one commit; None for a local folder."""
        return None if self.folder.is_dir() else _snapshot(self.source, self.revision).name

    @property
    def fingerprint(self) -> str:
        """A hash of all files of a local folder except its card; for a hub id, the id and the commit."""
        return _fingerprint(self.folder) if self.folder.is_dir() else f"{self.source} {self.commit}"

    def check_files(self) -> None:
        """Raises Incomplete if a local file is damaged, or a file is missing from a local folder.

        Raises:
            SettingError: the adapter cannot be used.
        """
        if self.adapter is not None:
            adapters.check_files(self.adapter)
        if self.folder.is_dir():
            check_files(self.folder)
        else:
            check_files(_snapshot(self.source, self.revision), whole=False)

    @property
    def decisive(self) -> dict[str, object]:
        """Everything that decides the answers. The path of the weights does not."""
        return {
            "weights": self.fingerprint,
            "device": self.resolved_device,
            "dtype": str(self.resolved_dtype),
            "attention": self.attention,
            "transparency": self.transparency,
            "versions": versions(),
            **({"image": self.image} if self.image else {}),
            **({"adapter": self.adapter_fingerprint, "peft": version("peft")} if self.adapter is not None else {}),
            **({"bits": self.weight_bits, METHOD: [version(METHOD), VALUES]} if self.weight_bits else {}),
            **({"system": self.system} if self.system is not None else {}),
        }

    @property
    def adapter_fingerprint(self) -> str:
        """A hash of the adapter's files; "" without an adapter. Raises SettingError if they cannot be read."""
        if self.adapter is None:
            return ""
        try:
            return adapters.fingerprint(self.adapter)
        except SettingError as error:
            raise error.under("backbone") from None

    @property
    def stored_bits(self) -> int | None:
        """The bits of a weight in the model's folder, if it was quantised before; else None.

        Raises:
            SettingError: it cannot be loaded so, or with `bits` or an adapter.
        """
        try:
            stored = bits_of(self._config)
        except Incomplete as error:
            raise SettingError("backbone.source", self.source, str(error)) from None
        for name, value in (("bits", self.bits), ("adapter", self.adapter)):
            if stored and value is not None:
                allowed = f"must be null: the weights in {self.source} have {stored} bits already"
                raise SettingError(f"backbone.{name}", value, allowed)
        return stored

    @property
    def weight_bits(self) -> int | None:
        """The bits of a quantised weight; None if the weights are not quantised. Raises as `stored_bits`."""
        return self.stored_bits or self.bits

    @property
    def notes(self) -> list[str]:
        """What a reader of the model's scores should know, one line each."""
        found = []
        if self.weight_bits == 8:
            found.append("weights in 8 bits: an answer depends a little on the other questions of its batch")
        try:
            if self.adapter is not None:
                found += [adapters.other_base(self.adapter, self.source), adapters.without_effect(self.adapter)]
        except SettingError as error:
            raise error.under("backbone") from None
        return list(filter(None, found))

    @property
    def weight_files(self) -> list[Path]:
        """The files with the model's weights."""
        folder = self.folder if self.folder.is_dir() else _snapshot(self.source, self.revision)
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        names = {single.name} if single.exists() else set(read_json(index)["weight_map"].values())
        return sorted(folder / name for name in names)

    @property
    def _config(self) -> Any:
        file = self.folder / "config.json"
        status = os.stat(file) if file.exists() else None
        return _config(self.location, self.revision, (status.st_mtime_ns, status.st_ino) if status else None)

    def accepts(self, sizes: Sequence[Size]) -> str:
        """Why the model cannot accept a prompt's pictures of these widths and heights; "" if it can."""
        given = self.location, self.commit, self.image
        try:
            fault = several_fault(*given, len(sizes)) if len(sizes) > 1 else ""
            return fault or next(filter(None, (size_fault(*given, size) for size in sizes)), "")
        except SettingError as error:
            raise error.under("backbone") from None
        except Exception as error:
            raise not_loaded(self.source, error, self.revision) from error

    @property
    def reads_pictures(self) -> bool:
        """Whether the model reads pictures, from its configuration alone. A language model reads text."""
        return not is_language_model(self._config.model_type)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of decoder layers and of query heads in each, from the model's configuration alone."""
        text = self._config.get_text_config()
        layers, heads = (getattr(text, name, 0) for name in ("num_hidden_layers", "num_attention_heads"))
        if not (layers and heads):
            allowed = f"a model of type {text.model_type} has no layers with heads of attention"
            raise SettingError("backbone.source", self.source, allowed)
        return int(layers), int(heads)

    @property
    def resolved_device(self) -> str:
        """The kind of device that computes: cpu or cuda."""
        if self.device in ("cpu", "cuda"):
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def resolved_dtype(self) -> torch.dtype:
        if self.dtype == "auto":
            return torch.bfloat16 if self.resolved_device == "cuda" else torch.float32
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@lru_cache
def _config(source: str, revision: str | None, changed: tuple[int, int] | None) -> Any:
    """A model's configuration. It is read again when its file changes."""
    try:
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # a damaged file can raise anything
        raise not_loaded(source, error, revision) from error


@lru_cache
def _snapshot(source: str, revision: str | None) -> Path:
    """The folder in the hub's cache with a model's files, named by the commit; the same for the whole process."""
    _config(source, revision, None)  # this downloads config.json, which is looked up next
    kept = try_to_load_from_cache(source, "config.json", revision=revision)
    if not isinstance(kept, str):
        raise SettingError("backbone.revision", revision, f"its commit is not in {HF_HUB_CACHE}; name the commit")
    return Path(kept).parent


def not_loaded(source: str, error: Exception, revision: str | None = None) -> SettingError:
    """An error that says why a model is not available, where it was looked for, and which command downloads it."""
    folder = Path(source).expanduser()
    if folder.is_dir() and not isinstance(error, Incomplete):
        try:
            check_files(folder)  # its message is clearer than the libraries'
        except Incomplete as better:
            error = better
    if isinstance(error, Incomplete):
        return SettingError("backbone.source", source, first_line(error))
    if "scaled_dot_product_attention" in str(error):
        return SettingError("backbone.attention", "sdpa", f"the model at {source} has none; eager may work")
    if folder.is_dir() or source.startswith("embedded:") or not isinstance(error, OSError):
        return SettingError("backbone.source", source, f"cannot be loaded ({first_line(error)})")
    fetch = shlex.join(["hf", "download", source, *(["--revision", revision] if revision else [])])
    todo = f"`{fetch}` with a network connection, or backbone.source=/path/to/its/folder"
    return SettingError("backbone.source", source, f"is not in {HF_HUB_CACHE}, and the hub does not provide it; {todo}")


def _fingerprint(folder: Path) -> str:
    """A hash of the files that transformers may read: neither cards nor hidden files."""
    digest = hashlib.sha256()
    for part in (folder, folder / "additional_chat_templates"):
        files = sorted(part.iterdir()) if part.is_dir() else []
        for path in files:
            if path.is_file() and path.suffix != ".md" and not path.name.startswith("."):
                digest.update(f"{path.relative_to(folder)} {file_hash(path)} ".encode())
    return digest.hexdigest()[:16]


def from_settings(values: Mapping[str, Any]) -> BackboneSettings:
    """Checked settings; a SettingError names them under `backbone`."""
    if values.get("source") is None:
        raise SettingError("backbone.source", None, "must name a model: a hub id (owner/name), or a folder")
    return build(BackboneSettings, values, "backbone")
