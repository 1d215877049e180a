"""VCD: S. Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive
Decoding", CVPR 2024, arXiv 2311.16922.

    ℓ* = (1 + α) ℓ − α ℓ′        ℓ′ the logits with a noised image
    x_t = √ᾱ_t x + √(1 − ᾱ_t) ε,  ᾱ_t = ∏_{s ≤ t} (1 − σ(s′) (0.005 − 0.00001) − 0.00001),  ε standard normal

s′ are a thousand numbers from −6 to 6 in equal steps, σ is the logistic function, x what the vision tower receives.

Read in the authors' code (DAMO-NLP-SG/VCD, vcd_utils): the schedule above, t 500, α 1, β 0.1 (the sampling function's
own α is 0.5). From the second answer token on, that code runs its second pass on the cache of the first one, so that
both give the same logits: the contrast reaches the first token alone, `steps=first`. By the paper, each token is
contrasted, `steps=all`. The authors sample tokens; here the most likely one is taken.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.second_pass import PictureChange, SecondPass
from tdrs.interventions.contrast import Contrast
from tdrs.settings import LARGEST_SEED, check_choice, check_number

NOISE_STEPS = 1000


def signal(step: int) -> float:
    """ᾱ_t, the share of the picture in the variance after t + 1 steps of noise."""
    rates = torch.linspace(-6, 6, NOISE_STEPS).sigmoid() * (0.5e-2 - 1e-5) + 1e-5
    return float((1 - rates).cumprod(dim=0)[step])


@dataclass(frozen=True, kw_only=True)
class VCD(Contrast):
    """Move the answer away from the one to a noised picture.

    Args:
        noise_step: t, from 0 to 999: how much noise.
        steps: `all` answer tokens are contrasted, as in the paper, or the `first` one, as in the authors' code.
        seed: of the noise, which also depends on the picture, and on nothing else.
    """

    noise_step: int = 500
    steps: str = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("noise_step", self.noise_step, 0, NOISE_STEPS - 1, whole=True)
        check_choice("steps", self.steps, ("all", "first"))
        check_number("seed", self.seed, 0, LARGEST_SEED, whole=True)

    @property
    def second_pass(self) -> SecondPass:
        change = PictureChange(f"diffusion noise, step {self.noise_step}, seed {self.seed}", self._noised)
        return SecondPass(combine=self.contrast, change=change, plausibility=self.beta)

    def _noised(self, values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        kept = signal(self.noise_step)
        noise = torch.randn(values.shape, generator=generator).to(values.device)
        return kept**0.5 * values + (1 - kept) ** 0.5 * noise

    def contrast(self, first: torch.Tensor, second: torch.Tensor, step: int) -> torch.Tensor:
        return first if self.steps == "first" and step else super().contrast(first, second, step)
