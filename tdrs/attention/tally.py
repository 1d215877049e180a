"""Counts that a method makes while it runs, such as how many values it had to clamp."""

import torch

Diagnostics = dict[str, dict[str, tuple[int, int]]]  # kind -> name -> (how many, of how many)


class Tally:
    """Counts by kind and name, summed over calls. They stay on the device until they are read."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, torch.Tensor]] = {}

    def add(self, kind: str, name: str, found: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Add the number of cases in which something was found, and the number of all cases.

        Args:
            kind: what is counted, for example `clamped`. An evaluation's metric is `{kind}_{name}`, the share.
            name: where it is counted, for example the name of a setting.
            found: whether it was found, for each case, boolean, of any shape.
            valid: which cases count, boolean, of the same shape; None means all.
        """
        if valid is None:
            count = found.sum()
            new = torch.stack([count, torch.full_like(count, found.numel())])
        else:
            new = torch.stack([(found & valid).sum(), valid.sum()])
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
