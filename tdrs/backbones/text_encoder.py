"""Samples as a language model's tokenizer encodes them: a passage stands where another model sees the picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoTokenizer

from tdrs.attention.second_pass import SecondPass
from tdrs.backbones.prompt_encoder import PromptEncoder
from tdrs.backbones.tokens import as_text, special_token_in
from tdrs.benchmarks.benchmark import Passage, Sample
from tdrs.settings import SettingError


class TextProcessor:
    """A tokenizer with the parts of a processor that the rest of the package uses."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.chat_template = tokenizer.chat_template
        if tokenizer.pad_token_id is None:  # no token attends to padding, so any will do
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)

    def apply_chat_template(self, turns: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False) -> str:
        """A conversation in the chat template. Language models' templates take a turn's content as one text."""
        plain = [{**turn, "content": "".join(part["text"] for part in turn["content"])} for turn in turns]
        text = self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=add_generation_prompt)
        return str(text)


def load_text_processor(source: str, revision: str | None = None) -> TextProcessor:
    """The tokenizer of a hub id or of a local folder; raises what `from_pretrained` raises.

    Raises:
        SettingError: there is no chat template, or the tokenizer does not say which characters a token covers.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise SettingError("source", source, "has no chat template: chat_template.jinja, or in tokenizer_config.json")
    if not tokenizer.is_fast:
        raise SettingError("source", source, "needs a tokenizer.json, which says which characters a token covers")
    return TextProcessor(tokenizer)


class TextEncoder(PromptEncoder):
    """A language model's tokenizer with the settings for prompts."""

    def special_token_in(self, sample: Sample) -> str:
        found = special_token_in(self.processor.tokenizer, passage_of(sample))
        return found or super().special_token_in(sample)

    def _prepared(self, samples: Sequence[Sample], second: SecondPass | None) -> Any:
        """The tokens of a batch, left-padded, on the CPU, and `marks`: which of them are the passage's.

        A token belongs to the passage if it covers one of its characters.
        """
        texts, spans = zip(*(self._text_and_span(sample, second) for sample in samples), strict=True)
        given = {"return_tensors": "pt", "padding": True, "padding_side": "left", "add_special_tokens": False}
        batch = self.processor.tokenizer(list(texts), return_offsets_mapping=True, **given)
        offsets = batch.pop("offset_mapping")
        starts, ends = torch.tensor(spans).T[..., None]
        marks = (offsets[..., 0] < ends) & (offsets[..., 1] > starts) & (starts < ends) & batch["attention_mask"].bool()
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "marks": marks}

    def _moved(self, batch: Any) -> Any:
        return {name: value.to(self.model.device) for name, value in batch.items()}

    def _text_and_span(self, sample: Sample, second: SecondPass | None = None) -> tuple[str, tuple[int, int]]:
        """The prompt in the chat template with the opening of the answer, and where the passage is in it."""
        system = None if second is None else second.system
        tokenizer = self.processor.tokenizer
        preface = "" if second is None else as_text(tokenizer, second.preface)
        before, passage, prompt, opening = (
            as_text(tokenizer, text) for text in (sample.before, passage_of(sample), sample.prompt, sample.opening)
        )
        passage = f"{passage}\n" if second is None or second.picture else ""
        whole = f"{before}{passage}{preface}{prompt}"
        content = whole.strip()  # as many templates would
        text = self.conversation(content, 0, system)
        start = text.rfind(content)
        if start < 0:
            raise SettingError("backbone.source", self.settings.source, "its chat template changes the user's text")
        begins = start - (len(whole) - len(whole.lstrip())) + len(before)
        return text + opening, (max(begins, start), begins + len(passage.removesuffix("\n")))


def passage_of(sample: Sample) -> str:
    """The text that stands in the place of a sample's picture. Raises SettingError if it has a picture."""
    if not isinstance(sample.picture, Passage):
        raise SettingError("dataset", sample.id, "asks about pictures, and a language model reads text alone")
    return sample.picture.text
