"""Image embeddings: the output of the vision tower and its projector for one picture, as rows of one tensor.

The pictures of a prompt with several are encoded together, since some families (LLaVA-OneVision) then cut none of them
into tiles. Their rows stand one after the other, under the digest of the set.

If the tower also gives embeddings for the first decoder layers (Qwen3-VL), they stand beside it in the same rows.

They are computed once per picture and kept on disk for all studies. There is one file per picture; its name is a hash
of the picture, and its folder's name a hash of the model's files (the processor's included), dtype and device. When the
folder exceeds its limit, the least recently used files are deleted. Each file has a checksum. A damaged file is set
aside, and the embeddings are computed again. A process also keeps what it has read or computed in memory.
"""

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tdrs.backbones.ahead import Work
from tdrs.backbones.embedding_memory import SHARE, EmbeddingMemory, machine_memory
from tdrs.backbones.prompt_encoder import PromptEncoder
from tdrs.backbones.two_passes import ChangedPicture
from tdrs.benchmarks.benchmark import Picture, PictureSet
from tdrs.checked_file import ASIDE, Damaged, set_aside
from tdrs.settings import SettingError
from tdrs.spans import FEATURES, TOWER, span

TENSOR = "features"  # the name of the tensor in a file


class EmbeddingStore:
    """A folder of image embeddings.

    Args:
        folder: the folder, which all models share.
        limit: the size of the folder in bytes, approximately; 0 keeps nothing.
        model: the name of one model's folder in it; see `of`.
    """

    def __init__(self, folder: Path, limit: int, model: str = "") -> None:
        self.folder = folder
        self.limit = limit
        self._model = model
        self._size: int | None = None

    def of(self, decisive: Mapping[str, object]) -> "EmbeddingStore | None":
        """The store of one model; None if the limit is 0.

        Args:
            decisive: what decides the model's answers.
        """
        model = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
        return EmbeddingStore(self.folder, self.limit, model) if self.limit else None

    def _path(self, digest: str) -> Path:
        return self.folder / self._model / f"{digest}.safetensors"

    def get(self, digest: str) -> torch.Tensor | None:
        """The embeddings of a picture by its digest, (tokens, width); None if they are not there.

        A damaged file is set aside, with a message on stderr.
        """
        path = self._path(digest)
        if not self.has(digest):
            return None
        try:
            found = self._read(path)
            os.utime(path)  # used now
        except Damaged as error:
            with suppress(OSError):  # another process was first, or the disk is read-only
                print(f"{path}: {error}; it is now {set_aside(path).name}", file=sys.stderr)
            return None
        except OSError:  # another process has just deleted it
            return None
        return found

    def has(self, digest: str) -> bool:
        """Whether there is a file of a picture's embeddings; it may be damaged."""
        return self._path(digest).exists()

    def used(self, digest: str) -> None:
        """Mark the embeddings of a picture as used now."""
        with suppress(OSError):  # they may be deleted, or the disk read-only
            os.utime(self._path(digest))

    def _read(self, path: Path) -> torch.Tensor:
        """The embeddings in a file; raises Damaged unless `put` wrote them for this model and picture."""
        try:
            with safe_open(path, "pt") as file:
                found = file.get_tensor(TENSOR)
                given = (file.metadata() or {}).get("sha256")
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise Damaged(f"cannot be read ({type(error).__name__})") from None
        if given != self._checksum(path, found):
            raise Damaged("has another content than its checksum says")
        return found

    def fault(self, path: Path) -> str:
        """What is wrong with a file of this model; "" if nothing is."""
        try:
            self._read(path)
        except Damaged as error:
            return str(error)
        return ""

    def _checksum(self, path: Path, embeddings: torch.Tensor) -> str:
        """A hash of the values, their type and shape, the model and the picture."""
        head = [self._model, path.name, str(embeddings.dtype), list(embeddings.shape)]
        content = embeddings.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(json.dumps(head).encode() + content).hexdigest()

    def put(self, digest: str, embeddings: torch.Tensor) -> None:
        """Keep the embeddings of a picture. A full disk is no error, because they can be computed again."""
        path = self._path(digest)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = embeddings.detach().cpu().contiguous()
            save_file({TENSOR: kept}, partial, {"sha256": self._checksum(path, kept)})
            size = partial.stat().st_size
            partial.replace(path)
        except (OSError, SafetensorError):
            partial.unlink(missing_ok=True)
            return
        if self._size is None:
            self._size = sum(used for _, used, _ in self._files())
        else:
            self._size += size
        if self._size > self.limit:
            self._delete_oldest()

    def _files(self) -> list[tuple[float, int, Path]]:
        """For each file of all models: when it was last used, its size, its path."""
        found = []
        for path in (*self.folder.glob("*/*.safetensors"), *self.folder.glob(f"*/*{ASIDE}-*")):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process has deleted it
                continue
            found.append((status.st_mtime, status.st_size, path))
        return found

    def _delete_oldest(self) -> None:
        """Delete the least recently used files until a tenth of the limit is free."""
        files = sorted(self._files())
        size = sum(used for _, used, _ in files)
        for _, used, path in files:
            if size <= 0.9 * self.limit:
                break
            with suppress(OSError):
                path.unlink()
            size -= used
        self._size = size


class Form(NamedTuple):
    """The form in which a model's forward takes image embeddings.

    Attributes:
        kind: the class of the vision tower's output.
        listed: whether they are a list of one tensor a picture; else one tensor of all pictures.
        layers: for how many decoder layers there are more embeddings, beside those of the image tokens.
    """

    kind: type
    listed: bool
    layers: int


@dataclass
class ImageEncoder:
    """A model's vision tower, with a store of what it has computed.

    Attributes:
        prompts: opens pictures and prepares them with the model's processor.
        store: where embeddings are kept; None keeps none.
    """

    prompts: PromptEncoder
    store: EmbeddingStore | None = None
    _memory: EmbeddingMemory = field(init=False, repr=False)
    _form: Form | None = field(default=None, init=False, repr=False)
    _several_checked: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        limit = min(self.store.limit, machine_memory() // SHARE) if self.store else 0
        self._memory = EmbeddingMemory(limit, self.prompts.model.device.type == "cuda")

    @span(FEATURES)
    def embeddings(self, picture: Picture) -> torch.Tensor:
        """The embeddings of a picture, or of several, on the model's device, (tokens, width); kept or computed."""
        found = self._memory.get(picture.digest)
        if found is None:
            found = self._stored(picture)
            self._memory.put(picture.digest, found)
        elif self.store:
            self.store.used(picture.digest)
        # a copy, so that no model can change what is kept
        return found.to(self.prompts.model.device, non_blocking=found.is_pinned(), copy=True)

    def _stored(self, picture: Picture) -> torch.Tensor:
        """The embeddings of a picture from the store; or computed, and stored."""
        store, digest = self.store, picture.digest
        found = self.prompts.ahead.take(FEATURES + digest, lambda: store.get(digest)) if store else None
        if found is None:
            found = self.encode(picture)
            if self.store:
                self.store.put(picture.digest, found)
        return found

    def work(self, pictures: Sequence[Picture]) -> Iterator[Work]:
        """What makes ahead what the embeddings of pictures need: reads stored ones, or prepares the pictures."""
        for digest, picture in {picture.digest: picture for picture in pictures}.items():
            if digest in self._memory:
                continue
            if self.store and self.store.has(digest):
                yield FEATURES + digest, partial(self.store.get, digest)
            else:
                yield self.prompts.work_of(picture)

    @span(TOWER)
    @torch.inference_mode()
    def encode(self, picture: Picture) -> torch.Tensor:
        """Compute the embeddings of a picture, or of several, (tokens, width).

        Raises:
            FloatingPointError: a value is NaN or infinite.
            SettingError: there are several, and a model without an adapter does not take their embeddings.
        """
        count = len(picture.parts)
        if count > 1 and not self.prompts.family.model_type and not self._several_checked:
            self._several_checked = True
            check_without_adapter(self.prompts, self, count)
        found = self._encode(picture)
        if not found.isfinite().all():
            raise FloatingPointError("NaN in the embeddings of a picture")
        return found

    @torch.inference_mode()
    def _encode(self, picture: Picture) -> torch.Tensor:
        model: Any = self.prompts.model
        batch = self.prompts.of_picture(picture)
        if isinstance(picture, ChangedPicture):
            change = self.prompts.family.change_pixels
            batch["pixel_values"] = change(model.config, batch["pixel_values"], picture.changed)
        taken = inspect.signature(model.base_model.get_image_features).parameters  # as transformers' `generate`
        output = model.get_image_features(**{n: x for n, x in batch.items() if n in taken}, return_dict=True)
        parts = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        self._form = Form(type(output), isinstance(parts[0], list | tuple), len(parts) - 1)
        return torch.cat([_rows(part) for part in parts], dim=-1).contiguous()

    def model_inputs(self, pictures: Sequence[Picture], parts: Sequence[slice] | None = None) -> dict[str, Any]:
        """What a model's forward takes as `mm_encoder_outputs` for the pictures of a batch.

        The vision tower sees one prompt's pictures at a time, so that embeddings depend neither on the batch nor on the
        store.

        Args:
            parts: which tokens of each picture; None means all.
        """
        distinct = {picture.digest: picture for picture in pictures}  # several questions may share a picture
        known = {digest: self.embeddings(picture) for digest, picture in distinct.items()}
        found = [known[picture.digest] for picture in pictures]
        if parts is not None:
            found = [embeddings[part] for embeddings, part in zip(found, parts, strict=True)]
        if self._form is None:  # all were in the store
            self._encode(Picture.of(Image.new("RGB", (64, 64))))
        assert self._form is not None
        width = found[0].shape[1] // (1 + self._form.layers)
        columns: Any = zip(*(x.split(width, dim=1) for x in found), strict=True)
        split = [list(column) for column in columns]
        more = {"deepstack_features": split[1:]} if self._form.layers else {}
        pooled = split[0] if self._form.listed else torch.cat(split[0])
        return {"image": self._form.kind(pooler_output=pooled, **more)}


def _rows(embeddings: Any) -> torch.Tensor:
    """The embeddings of one picture as one tensor, (tokens, width)."""
    parts = embeddings if isinstance(embeddings, list | tuple) else [embeddings]
    return torch.cat([part.flatten(0, -2) for part in parts])


@torch.inference_mode()
def check_without_adapter(prompts: PromptEncoder, images: ImageEncoder, count: int = 1) -> None:
    """Check a model whose family has no adapter: embeddings in place of pixels must give the same logits.

    Args:
        count: of the pictures in a prompt.

    Raises:
        SettingError: they do not, or the model does not take them.
    """
    model: Any = prompts.model
    kind = model.config.model_type
    if not model._supports_mm_encoder_outputs() or not hasattr(model.base_model, "get_image_features"):
        raise SettingError(
            "backbone.source", kind, "a model of this type takes no image embeddings (mm_encoder_outputs)"
        )
    gradient = Image.radial_gradient("L").convert("RGB")
    parts = [Picture.of(gradient.resize((96 + 32 * number, 64))) for number in range(count)]
    picture = PictureSet.of_parts(lambda: parts)
    batch = prompts.batch([prompts.conversation("?", count)], [prompts.open_parts(picture)])
    whole = model(**batch).logits
    tokens = {name: x for name, x in batch.items() if not name.startswith("pixel_")}
    embedded = model(**tokens, mm_encoder_outputs=images.model_inputs([picture])).logits
    if (whole - embedded).abs().max() > 0.02 * whole.abs().max():
        raise SettingError(
            "backbone.source", kind, "its logits differ between pixels and image embeddings; it needs an adapter"
        )
