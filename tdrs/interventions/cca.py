"""Concentric image positions: Y. Xing et al., "Mitigating Object Hallucination via Concentric Causal Attention",
NeurIPS 2024, arXiv 2410.15926; and MCA-LLaVA, "MCA-LLaVA: Manhattan Causal Attention for Reducing Hallucination in
Large Vision-Language Models", MM 2025.

    `rings`    image token (row, column) → start + min(row, column, rows − 1 − row, columns − 1 − column)
    `folded`   image token (row, column) → start + min(row, rows − 1 − row) + min(column, columns − 1 − column)

`start` is the position of the first image token; the text goes on after the largest position of the image. Positions
are those of the authors' code (xing0047/cca-llava, llava/cca_utils/cca.py; ErikZ719/MCA-LLaVA, llava/mca_utils/mca.py).

OFF LABEL: both papers train the model with these positions, and with a causal mask that follows them (a token sees
image tokens of smaller positions). Here the model was trained with other positions, and its mask stays. So a result is
no measure of the papers' models.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import IMAGE
from tdrs.attention.call import Call
from tdrs.attention.turned import Turned, turn
from tdrs.interventions.positions import Positions, own
from tdrs.settings import SettingError, check_choice

FORMS = ("rings", "folded")


@dataclass(frozen=True, kw_only=True)
class CCA(Positions):
    """Image tokens at positions that shrink the image's extent; the text follows closer.

    Args:
        form: `rings`: CCA; `folded`: MCA-LLaVA.
        side: the rows of the square of tokens of a picture, or of each tile that it is cut into. None: the model's own,
            which is known for most families. Tiles follow each other, each with rings of its own. M-RoPE's own rows and
            columns are used where there are three axes, and `side` is ignored; all three axes then take the new
            position.

    Raises:
        SettingError: in the first call, if the side is not known, is not that of the model, or does not fit the number
            of image tokens.
    """

    form: str = "rings"
    side: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("form", self.form, FORMS)
        if self.side is not None and (type(self.side) is not int or self.side < 1):
            raise SettingError("side", self.side, "must be a whole number, at least 1, or null")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"roles"}

    @property
    def row_local(self) -> bool:
        return False  # an image must be read whole: its position depends on its size

    def statistics(self, call: Call) -> Turned:
        if self not in call.memory:
            call.memory[self] = self._positions(call)
        return turn(call, call.memory[self].to(call.query.device))

    def _positions(self, call: Call) -> torch.Tensor:
        """The new positions of all tokens, (B, 1, K, axes)."""
        assert call.roles is not None, "the method must list 'roles' in its needs"
        image = call.roles == IMAGE
        positions = own(call)[:, 0].expand(image.shape[0], -1, -1)
        samples = zip(positions, image, strict=True)
        return torch.stack([self._sample(*one, call.tile_side) for one in samples]).unsqueeze(1)

    def _sample(self, positions: torch.Tensor, image: torch.Tensor, known: int | None) -> torch.Tensor:
        """The new positions of one sample, (K, axes)."""
        result = positions.clone()
        edges = torch.nn.functional.pad(image.int(), (1, 1)).diff()
        runs = zip((edges == 1).nonzero()[:, 0].tolist(), (edges == -1).nonzero()[:, 0].tolist(), strict=True)
        for start, stop in runs:
            own_end = positions[start:stop].max() + 1  # the position of the text that follows
            offset, at = result[start].min(), start
            for row, column in self._grids(positions[start:stop], known):
                folded = [torch.minimum(part, part.max() - part) for part in (row, column)]
                new = torch.minimum(*folded) if self.form == "rings" else folded[0] + folded[1]
                result[at : at + len(new)] = (offset + new)[:, None]
                offset, at = offset + new.max() + 1, at + len(new)
            result[stop:] = positions[stop:] + (offset - own_end)
        return result

    def _grids(self, positions: torch.Tensor, known: int | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The row and the column, from 0, of each token of a run of image tokens; one pair for each picture or tile."""
        count, axes = positions.shape
        if axes > 1:
            row, column = (positions[:, axis] - positions[:, axis].min() for axis in (-2, -1))
            return [(row, column)]
        side = self._side(known)
        if count % side**2:
            reason = (
                f"{side} × {side} tokens are a picture or a tile, and an image of {count} tokens has no such squares"
            )
            raise SettingError("side", self.side, reason)
        number = torch.arange(side**2, device=positions.device, dtype=positions.dtype)
        return [(number // side, number % side)] * (count // side**2)

    def _side(self, known: int | None) -> int:
        """The rows of a square, from the setting and what is known of the model."""
        if known == 0:
            raise SettingError("side", self.side, "no side fits: the image tokens of this model are not squares")
        if known is not None and self.side not in (None, known):
            raise SettingError("side", self.side, f"must be {known} in this model, or null")
        side = known or self.side
        if side is None:
            reason = "must be given: how many rows of tokens a picture or a tile has is not known for this model"
            raise SettingError("side", None, reason)
        return side
