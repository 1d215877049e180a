"""VAR, visual attention redistribution: S. Kang, J. Kim, J. Kim and S. J. Hwang, "See What You Are Told: Visual
Attention Sink in Large Multimodal Models", ICLR 2025, arXiv 2503.03321.

    φ(j) = max_d |x_jd| / rms(x_j)          x_j the hidden state of token j that enters the layer; a sink has φ(j) > τ
    W'_ij = p W_ij                          j a sink
    W'_ij = W_ij (1 + (1 − p) S / O)        j another image key; S is the weight on all sinks, O on these keys
                                            i a text row: a token after the image

in heads and rows with a weight of at least `summ` on the image, of which sinks have at most the share ρ, and if some
image token is a sink. The authors' repositories (seilk/VisAttnSink, MICV-yonsei/VisAttnSink) could not be read; copies
of its logic.py by others were. There: τ 20, ρ 0.5, summ 0.2, p 0.6; layers 2 to the last but one; sinks outside the
image lose weight, too; d is one of two dimensions of each language model: 1415 and 2533 for Llama 2 7B, 2100 and 4743
for 13B.

The default here, all dimensions, serves any model: a state whose largest coordinate is that large is a sink, whichever
it is. It finds at least the sinks of chosen dimensions. No coordinate of a state of D numbers is above √D times its
rms: with τ 20, models of fewer than 400 numbers, such as the embedded ones, have no sink, and the result is that of the
stock model. The metric `var_edited` is the share of heads and text rows in which the edit acts.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import IMAGE, TEXT, Block
from tdrs.attention.call import Call
from tdrs.attention.method import Method
from tdrs.attention.selection import Selection
from tdrs.settings import SettingError, check_number


@dataclass(frozen=True, kw_only=True)
class VAR(Method):
    """In text rows, move weight from sinks to the other image keys.

    Args:
        tau: τ, at least 0.
        rho: ρ, from 0 to 1.
        summ: the smallest weight on the image of a head that is edited, from 0 to 1.
        p: the share of their weight that sinks keep, from 0 to 1; 1 is the stock model.
        dimensions: `all`, or the numbers of the hidden state's dimensions that tell a sink.
        layers: the default is that of the authors, as a share of the depth.
    """

    tau: float = 20.0
    rho: float = 0.5
    summ: float = 0.2
    p: float = 0.6
    dimensions: str | tuple[int, ...] = "all"
    layers: Selection = "6%-97%"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("tau", self.tau, 0)
        for name in ("rho", "summ", "p"):
            check_number(name, getattr(self, name), 0, 1)
        numbers = () if isinstance(self.dimensions, str) else tuple(self.dimensions)
        good = bool(numbers) and all(type(number) is int and number >= 0 for number in numbers)
        if self.dimensions != "all" and not good:
            raise SettingError("dimensions", self.dimensions, "must be 'all' or a list of numbers from 0")
        object.__setattr__(self, "dimensions", tuple(sorted(set(numbers))) or "all")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"roles", "states"})

    @property
    def active(self) -> bool:
        return self.p < 1

    @property
    def reads_whole_map(self) -> bool:
        return False  # a token is a sink by its own state

    def statistics(self, call: Call) -> torch.Tensor:
        """Which keys are sinks, (B, 1, 1, K) boolean."""
        assert call.states is not None, "the method must list 'states' in its needs"
        states = call.states.float()
        size = states.abs() * (states.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()
        if not isinstance(self.dimensions, str):
            if self.dimensions[-1] >= size.shape[-1]:
                allowed = f"must be from 0 to {size.shape[-1] - 1} in this model"
                raise SettingError("dimensions", list(self.dimensions), allowed)
            size = size[..., list(self.dimensions)]
        return (size.amax(dim=-1) > self.tau)[:, None, None]

    def reweigh(self, block: Block, weights: torch.Tensor, statistics: object) -> torch.Tensor:
        assert isinstance(statistics, torch.Tensor)

        def on(keys: torch.Tensor) -> torch.Tensor:
            return weights.masked_fill(~keys, 0).sum(dim=-1, keepdim=True)

        sinks, image = statistics[..., : block.keys], block.keys_of(IMAGE)
        there, others = on(sinks & image), on(image & ~sinks)
        rows = block.queries(TEXT) & block.visible(sinks & image).any(dim=-1, keepdim=True)
        chosen = (there + others >= self.summ) & (there <= self.rho * (there + others)) & (others > 0)
        text = block.queries(TEXT).expand_as(chosen)
        if block.call.real is not None:
            text = text & block.call.real[:, :, block.start : block.stop]
        block.call.tally.add("var", "edited", chosen & rows, text)
        gain = 1 + (1 - self.p) * on(sinks) / others.clamp_min(1e-20)
        factor = torch.where(sinks, self.p, torch.where(image, gain, 1.0))
        return torch.where(chosen & rows, weights * factor, weights)
