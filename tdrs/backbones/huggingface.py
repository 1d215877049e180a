"""Load a vision-language model and its processor with transformers' own classes; ask it a batch of questions.

The embedded models and the hub's take the same path: a folder in the hub's layout, or a hub id.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from tdrs.benchmarks.scienceqa import Sample
from tdrs.settings import SettingError, build, check_choice, check_number

EMBEDDED = Path(__file__).parent.parent / "zoo" / "models"
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class BackboneSettings:
    """Which model, and how it runs.

    Args:
        source: `embedded:NAME`, a local folder in the hub's layout, or a hub id (owner/name).
        revision: the hub commit; None is the newest.
        device: `auto` is cuda where there is one.
        dtype: `auto` is bfloat16 on cuda and float32 on the CPU.
        attention: the model's own attention implementation, on which edits are put.
        max_new_tokens: the longest answer.
    """

    name: str
    source: str
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "sdpa"
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        check_choice("device", self.device, DEVICES)
        check_choice("dtype", self.dtype, DTYPES)
        check_choice("attention", self.attention, ("sdpa", "eager"))
        check_number("max_new_tokens", self.max_new_tokens, 1, whole=True)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SettingError("device", self.device, "no CUDA device is available here; use cpu")
        if self.source.startswith("embedded:"):
            known = sorted(folder.name for folder in EMBEDDED.iterdir() if (folder / "config.json").exists())
            check_choice("source", self.source, [f"embedded:{name}" for name in known])
        elif not self.folder.is_dir() and (self.source.startswith((".", "/", "~")) or self.source.count("/") != 1):
            raise SettingError("source", self.source, "no such folder, and not a hub id (owner/name)")
        elif self.folder.is_dir() and not (self.folder / "config.json").exists():
            raise SettingError("source", self.source, "the folder has no config.json")

    @property
    def folder(self) -> Path:
        """The local folder, whether or not it exists."""
        if self.source.startswith("embedded:"):
            return EMBEDDED / self.source.removeprefix("embedded:")
        return Path(self.source).expanduser()

    @property
    def fingerprint(self) -> str:
        """A hash of a local folder's files but its card (of large ones, size and first MiB); a hub id's revision."""
        return _fingerprint(self.folder) if self.folder.is_dir() else str(self.revision)

    @property
    def shape(self) -> tuple[int, int]:
        """How many decoder layers the model has, and how many query heads each; from its configuration alone."""
        source = str(self.folder) if self.folder.is_dir() else self.source
        config = AutoConfig.from_pretrained(source, revision=self.revision, trust_remote_code=False)
        text = config.get_text_config()
        return int(text.num_hidden_layers), int(text.num_attention_heads)

    @property
    def resolved_device(self) -> str:
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def resolved_dtype(self) -> torch.dtype:
        if self.dtype == "auto":
            return torch.bfloat16 if self.resolved_device == "cuda" else torch.float32
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@lru_cache
def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".md"):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 24 if path.stat().st_size <= 1 << 24 else 1 << 20))
    return digest.hexdigest()[:16]


def from_settings(values: Mapping[str, Any]) -> BackboneSettings:
    """Checked settings; raises SettingError under the name `backbone`."""
    return build(BackboneSettings, values, "backbone")


@dataclass(frozen=True)
class Answer:
    """What the model said to one sample.

    Attributes:
        text: the decoded answer, stripped.
        margin: log-odds of the gold option's letter against the best other option's, at the first answer position.
    """

    text: str
    margin: float


@dataclass
class Backbone:
    """A loaded model with its processor."""

    settings: BackboneSettings
    model: PreTrainedModel
    processor: Any
    _letters: dict[str, int] = field(default_factory=dict)

    def _letter(self, letter: str) -> int:
        """The token an answer consisting of this letter begins with."""
        if letter not in self._letters:
            self._letters[letter] = self.processor.tokenizer.encode(letter, add_special_tokens=False)[-1]
        return self._letters[letter]

    def inputs(self, samples: Sequence[Sample]) -> Any:
        """The processor's tensors for a batch, left-padded, on the model's device."""
        turns = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": sample.prompt}]}]
            for sample in samples
        ]
        texts = [self.processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
        images = [sample.image for sample in samples]
        batch = self.processor(text=texts, images=images, return_tensors="pt", padding=True, padding_side="left")
        return batch.to(self.model.device, dtype=self.model.dtype)

    @torch.inference_mode()
    def answer(self, samples: Sequence[Sample]) -> list[Answer]:
        """Greedy answers to a batch, under whatever intervention the model is in."""
        inputs = self.inputs(samples)
        output = self.model.generate(  # type: ignore[operator]
            **inputs,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=self.settings.max_new_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
        said = output.sequences[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.tokenizer.batch_decode(said, skip_special_tokens=True)
        first = output.logits[0].float().log_softmax(dim=-1).cpu()
        answers = []
        for row, (sample, text) in enumerate(zip(samples, texts, strict=True)):
            score = {letter: float(first[row, self._letter(letter)]) for letter in sample.letters}
            others = [value for letter, value in score.items() if letter != sample.gold]
            answers.append(Answer(text.strip(), score[sample.gold] - max(others, default=0.0)))
        return answers


def load(settings: BackboneSettings) -> Backbone:
    """The model in eval mode on its device, and its processor.

    Raises:
        SettingError: the weights cannot be found or read.
    """
    source = str(settings.folder) if settings.folder.is_dir() else settings.source
    try:
        processor = AutoProcessor.from_pretrained(source, revision=settings.revision, trust_remote_code=False)
        model = AutoModelForImageTextToText.from_pretrained(
            source,
            revision=settings.revision,
            dtype=settings.resolved_dtype,
            attn_implementation=settings.attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingError("backbone.source", settings.source, f"cannot be loaded ({reason})") from error
    torch.nn.Module.to(model, settings.resolved_device)
    return Backbone(settings, model.eval(), processor)
