"""ICD: X. Wang, J. Pan, L. Ding and C. Biemann, "Mitigating Hallucinations in Large Vision-Language Models with
Instruction Contrastive Decoding", Findings of ACL 2024, arXiv 2403.18715.

    ℓ* = (1 + α) ℓ − α ℓ′        ℓ′ the logits under an instruction that disturbs

Read in the authors' code (p1k0pan/ICD, icd_utils and gen_scripts): α 1, β 0.1, and five instructions, of which the
default here is the fourth, with its spelling. With LLaVA the instruction takes the place of the system prompt
(icd_llava_pope.py), `place=system`. With InstructBLIP it is read by the Q-Former, alone or in front of the question;
models without a Q-Former can only be given the latter, `place=question`, which also suits a chat template that takes no
system prompt. The authors sample tokens; here the most likely one is taken.
"""

from dataclasses import dataclass

from tdrs.attention.second_pass import SecondPass
from tdrs.interventions.contrast import Contrast
from tdrs.settings import SettingError, check_choice


@dataclass(frozen=True, kw_only=True)
class ICD(Contrast):
    """Move the answer away from the one under a disturbing instruction.

    Args:
        instruction: the disturbing instruction.
        place: it is the `system` prompt, or stands in front of the `question`.
    """

    instruction: str = "You are a confused objects detector to provide a fuzzy overview or impression of the image."
    place: str = "system"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("place", self.place, ("system", "question"))
        if not self.instruction.strip():
            raise SettingError("instruction", self.instruction, "must be text")

    @property
    def second_pass(self) -> SecondPass:
        if self.place == "system":
            return SecondPass(combine=self.contrast, system=self.instruction, plausibility=self.beta)
        return SecondPass(combine=self.contrast, preface=f"{self.instruction} ", plausibility=self.beta)
