"""Counts that a method makes while it runs, such as how many values it had to clamp."""

import torch

Diagnostics = dict[str, dict[str, tuple[int, int]]]  # kind -> name -> (how many, of how many)


class Tally:
    """Counts by kind and name, summed over calls. They stay on the device until they are read."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, torch.Tensor]] = {}
        self._counters: dict[tuple[str, tuple[str, ...], torch.device], torch.Tensor] = {}

    def counters(self, kind: str, names: tuple[str, ...], device: torch.device) -> torch.Tensor:
        """Counts that a kernel adds to in place, (names, 2) int64: how many, and of how many; see `add`."""
        key = kind, names, device
        if key not in self._counters:
            self._counters[key] = torch.zeros(len(names), 2, dtype=torch.int64, device=device)
        return self._counters[key]

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
        found: Diagnostics = {}
        for kind, names in self._counts.items():
            for name, counts in names.items():
                found.setdefault(kind, {})[name] = (int(counts[0]), int(counts[1]))
        for (kind, of, _), counters in self._counters.items():
            for name, (some, all_) in zip(of, counters.tolist(), strict=True):
                before = found.setdefault(kind, {}).get(name, (0, 0))
                found[kind][name] = (before[0] + some, before[1] + all_)
        return found

    def take(self) -> Diagnostics:
        """The counts so far; counting starts again from 0."""
        found = self.read()
        self._counts, self._counters = {}, {}
        return found
