"""Pictures' features, kept on disk: the vision tower sees each picture once, whatever is measured afterwards.

A file a picture, named by a hash of the picture, the model's files (its processor's among them), dtype and device; all
studies share them. The least recently used ones go when the folder outgrows its bound.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


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
        """The features of a picture by its digest, (tokens, width); None if they are not there or cannot be read."""
        path = self._path(picture)
        try:
            found = load_file(path)["features"]
            os.utime(path)  # used now
        except (OSError, SafetensorError):
            return None
        return found

    def put(self, picture: str, features: torch.Tensor) -> None:
        """Keep a picture's features; a disk that takes no more is no error, since they can be made again."""
        path = self._path(picture)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"features": features.cpu()}, partial)
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
        for path in self.folder.glob("*/*.safetensors"):
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
            path.unlink(missing_ok=True)
            size -= used
        self._size = size
