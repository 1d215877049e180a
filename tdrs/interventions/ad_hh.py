"""AD-HH: T. Yang et al., "Mitigating Hallucinations in Large Vision-Language Models via Modular Attribution and
Intervention", ICLR 2025 (adaptive deactivation of hallucination heads).

    W'_hij = 0          j a text key: a token after the image, where Σ_j W_hij over text keys is at least τ
                        i the last query row, h a chosen head of a layer

W are the weights after the softmax; they are not scaled to sum to 1 again. Read in the authors' code
(TianyunYoung/Hallucination-Attribution, baselines/minigpt4/models/modeling_llama.py and eval_scripts): the sum is over
one prompt, the row that of the next token, while the prompt is read and at each answer token; the command for their
comparison and the script's default have τ 0.5. Their folder LLaVA was read in copies alone; scripts there have τ 0.4.

The authors choose 10 to 20 heads of single layers for each model, by zero ablation (`tdrs/head_scores.py`);
`python -m tdrs.calibrate intervention=ad_hh` does so on a tuning split. The default, all heads, is not the paper's
method.
"""

from dataclasses import dataclass

import torch

from tdrs.attention.block import IMAGE, TEXT, Block
from tdrs.attention.method import Method
from tdrs.settings import check_number


@dataclass(frozen=True, kw_only=True)
class ADHH(Method):
    """At the answer position, take the weight of the text away from heads that mostly attend to it.

    A prompt without an image is not edited.

    Args:
        threshold: τ, the weight on the text from which a head is edited, above 0; above 1 is the stock model.
        heads: the heads, such as [L3H1, L5H0].
    """

    threshold: float = 0.5

    head_score = "influence"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("threshold", self.threshold, 0, above=True)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"roles"})

    @property
    def active(self) -> bool:
        return self.threshold <= 1

    @property
    def last_row_only(self) -> bool:
        return True

    def reweigh(self, block: Block, weights: torch.Tensor, statistics: object) -> torch.Tensor:
        text = block.keys_of(TEXT)
        mass = weights.masked_fill(~text, 0).sum(dim=-1, keepdim=True)
        image = block.visible(block.keys_of(IMAGE)).any(dim=-1, keepdim=True)
        return weights.masked_fill(text & block.last & image & (mass >= self.threshold), 0)
