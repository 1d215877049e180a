"""Counts that a method makes while it runs: its own diagnostics, such as how many values it had to clamp."""

import torch

Diagnostics = dict[str, dict[str, tuple[int, int]]]  # kind -> name -> (how many, of how many)


class Tally:
    """Counts by kind and name, summed over calls. They stay on the device until they are read."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, torch.Tensor]] = {}

    def add(self, kind: str, name: str, count: torch.Tensor, of: torch.Tensor) -> None:
        """Add `count` of `of` cases, both 0-d tensors.

        Args:
            kind: what is counted, for example `clamped`. Metrics are named `{kind}_{name}`.
            name: where it is counted, for example a setting.
        """
        new = torch.stack([count, of])
        names = self._counts.setdefault(kind, {})
        names[name] = names[name].to(new.device) + new if name in names else new

    def read(self) -> Diagnostics:
        """The counts so far."""
        return {
            kind: {name: (int(counts[0]), int(counts[1])) for name, counts in names.items()}
            for kind, names in self._counts.items()
        }

    def take(self) -> Diagnostics:
        """The counts so far; counting starts again from 0."""
        found = self.read()
        self._counts = {}
        return found
