"""Pictures' features, kept on disk: the vision tower sees each picture once, whatever is measured afterwards.

A file a picture, named by a hash of the picture, the model's files (its processor's among them), dtype and device; all
studies share them. The least recently used ones go when the folder outgrows its bound. Each has a checksum; one that is
damaged is set aside, and the picture is seen again.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tdrs.checked_file import ASIDE, Damaged, set_aside


class Features:
    """A folder of features.

    Args:
        limit: bytes on disk, about; 0 keeps nothing.
    """

    def __init__(self, folder: Path, limit: int, model: str = "") -> None:
        self.folder = folder
        self.limit = limit
        self._model = model
        self._size: int | None = None

    def of(self, decisive: Mapping[str, object]) -> "Features | None":
        """The features of one model, by what decides its answers; None if nothing is to be kept."""
        model = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]
        return Features(self.folder, self.limit, model) if self.limit else None

    def _path(self, picture: str) -> Path:
        return self.folder / self._model / f"{picture}.safetensors"

    def get(self, picture: str) -> torch.Tensor | None:
        """The features of a picture by its digest, (tokens, width); None if they are not there.

        Damaged ones are set aside, which is said.
        """
        path = self._path(picture)
        if not path.exists():
            return None
        try:
            found = self._read(path)
            os.utime(path)  # used now
        except Damaged as error:
            with suppress(OSError):  # another process was first, or the disk is read-only
                print(f"{path}: {error}; it is now {set_aside(path).name}", file=sys.stderr)
            return None
        except OSError:  # dropped by another process a moment ago
            return None
        return found

    def _read(self, path: Path) -> torch.Tensor:
        """The features in a file; raises Damaged unless they are what `put` wrote for this model and picture."""
        try:
            with safe_open(path, "pt") as file:
                found = file.get_tensor("features")
                given = (file.metadata() or {}).get("sha256")
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise Damaged(f"cannot be read ({type(error).__name__})") from None
        if given != self._checksum(path, found):
            raise Damaged("has another content than its checksum says")
        return found

    def fault(self, path: Path) -> str:
        """What is wrong with a file of this model's features; "" if nothing is."""
        try:
            self._read(path)
        except Damaged as error:
            return str(error)
        return ""

    def _checksum(self, path: Path, features: torch.Tensor) -> str:
        """A hash of features, their type and shape, and whose they are."""
        head = [self._model, path.name, str(features.dtype), list(features.shape)]
        content = features.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(json.dumps(head).encode() + content).hexdigest()

    def put(self, picture: str, features: torch.Tensor) -> None:
        """Keep a picture's features; a disk that takes no more is no error, since they can be made again."""
        path = self._path(picture)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = features.detach().cpu().contiguous()
            save_file({"features": kept}, partial, {"sha256": self._checksum(path, kept)})
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
            self._drop()

    def _files(self) -> list[tuple[float, int, Path]]:
        """When each file was last used, its size, its path; of all models."""
        found = []
        for path in (*self.folder.glob("*/*.safetensors"), *self.folder.glob(f"*/*{ASIDE}-*")):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process dropped it
                continue
            found.append((status.st_mtime, status.st_size, path))
        return found

    def _drop(self) -> None:
        """Remove the least recently used files until a tenth of the bound is free."""
        files = sorted(self._files())
        size = sum(used for _, used, _ in files)
        for _, used, path in files:
            if size <= 0.9 * self.limit:
                break
            with suppress(OSError):
                path.unlink()
            size -= used
        self._size = size
