"""Image embeddings: the output of the vision tower and its projector for one picture.

They are computed once per picture and kept on disk for all studies. There is one file per picture; its name is a hash
of the picture, and its folder's name a hash of the model's files (the processor's included), dtype and device. When the
folder exceeds its limit, the least recently used files are deleted. Each file has a checksum. A damaged file is set
aside, and the embeddings are computed again.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tdrs.backbones.prompt_encoder import PromptEncoder
from tdrs.benchmarks.benchmark import Picture
from tdrs.checked_file import ASIDE, Damaged, set_aside

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
        if not path.exists():
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


@dataclass
class ImageEncoder:
    """A model's vision tower, with a store of what it has computed.

    Attributes:
        prompts: opens pictures and prepares them with the model's processor.
        store: where embeddings are kept; None keeps none.
    """

    prompts: PromptEncoder
    store: EmbeddingStore | None = None

    def embeddings(self, picture: Picture) -> torch.Tensor:
        """The embeddings of a picture on the model's device, (tokens, width), from the store or computed."""
        found = self.store.get(picture.digest) if self.store else None
        if found is None:
            found = self.encode(picture)
            if self.store:
                self.store.put(picture.digest, found)
        return found.to(self.prompts.model.device)

    @torch.inference_mode()
    def encode(self, picture: Picture) -> torch.Tensor:
        """Compute the embeddings of a picture, (tokens, width).

        Raises:
            FloatingPointError: a value is NaN or infinite.
        """
        model: Any = self.prompts.model
        processor = self.prompts.processor
        image = [self.prompts.open(picture)]
        batch = processor(text=[processor.image_token], images=image, return_tensors="pt", **self.prompts.image_kwargs)
        given = {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
        given = {name: value.to(model.device) for name, value in given.items()}
        given["pixel_values"] = given["pixel_values"].to(model.dtype)
        output = model.get_image_features(**given, return_dict=True)
        found = torch.cat(list(output.pooler_output)).contiguous()
        if not found.isfinite().all():
            raise FloatingPointError("NaN in the embeddings of a picture")
        return found

    def model_inputs(self, pictures: Sequence[Picture], parts: Sequence[slice] | None = None) -> dict[str, Any]:
        """What a model's forward takes as `mm_encoder_outputs` for the pictures of a batch.

        The vision tower sees one picture at a time, so that embeddings depend neither on the batch nor on the store.

        Args:
            parts: which tokens of each picture; None means all.
        """
        distinct = {picture.digest: picture for picture in pictures}  # several questions may share a picture
        known = {digest: self.embeddings(picture) for digest, picture in distinct.items()}
        found = [known[picture.digest] for picture in pictures]
        if parts is not None:
            found = [embeddings[part] for embeddings, part in zip(found, parts, strict=True)]
        return {"image": BaseModelOutputWithPooling(pooler_output=self.prompts.family.pack(found))}
