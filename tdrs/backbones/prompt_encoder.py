"""Samples as a model's processor encodes them: the text of the prompt, its tokens and the pixels of its pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, PreTrainedModel

from tdrs.attention.second_pass import SecondPass
from tdrs.backbones.ahead import Ahead, Work
from tdrs.backbones.backbone_settings import BackboneSettings
from tdrs.backbones.checkpoint import Incomplete
from tdrs.backbones.families import Family
from tdrs.backbones.processors import user_turn
from tdrs.backbones.tokens import as_text, special_token_in
from tdrs.benchmarks.benchmark import Picture, Sample
from tdrs.settings import SettingError, first_line
from tdrs.spans import PREPARING, span

CACHED_BYTES = 1 << 28


def picture_place(text: str, plain: str) -> int:
    """Where the pictures begin in a prompt: in front of all that the chat template writes for them.

    Args:
        text, plain: a prompt in the chat template with pictures, and the same without. Its own text begins with another
            character than what stands for a picture.

    Raises:
        ValueError: the two differ in more than the pictures, except for white space.
    """
    start = _common(text, plain)
    end = _common(text[start:][::-1], plain[start:][::-1])
    if start + end == len(text) or plain[start : len(plain) - end].strip():
        raise ValueError("the chat template changes more than the place of the picture")
    return start


def _common(first: str, second: str) -> int:
    """How many characters two texts have in common at their beginning."""
    differ = (number for number, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return next(differ, min(len(first), len(second)))


def picture_marks(processor: Any) -> tuple[str, ...]:
    """The tokens that a chat template may write for a picture: the image token, or for Gemma 3 the one before it."""
    return (processor.image_token, *filter(None, [getattr(processor, "boi_token", None)]))


def check_template(processor: Any, system: str | None, pictures: bool = True) -> None:
    """Try a chat template, which is a program of the model's folder.

    Args:
        system: the system prompt; None is the template's own.
        pictures: whether a prompt has a picture.

    Raises:
        Incomplete: the template fails, or leaves out the question or the picture.
        SettingError: it refuses the system prompt, or leaves it out.
    """
    asked = user_turn("?", int(pictures))
    try:
        text = str(processor.apply_chat_template([asked], add_generation_prompt=True))
    except Exception as error:  # templates raise errors of any kind
        raise Incomplete(f"the chat template fails ({first_line(error)})") from error
    if "?" not in text:
        raise Incomplete("the chat template leaves the user's text out")
    if pictures and not any(mark in text for mark in picture_marks(processor)):
        raise Incomplete("the chat template leaves the picture out")
    if system is None:
        return
    try:
        told = str(processor.apply_chat_template([system_turn(system), asked], add_generation_prompt=True))
    except Exception as error:
        raise SettingError("system", system, f"the chat template refuses it ({first_line(error)})") from error
    if system.strip() not in told:
        raise SettingError("system", system, "the chat template leaves it out")


def system_turn(system: str) -> dict[str, Any]:
    """The system prompt, as chat templates take it."""
    return {"role": "system", "content": [{"type": "text", "text": system}]}


@dataclass
class PromptEncoder:
    """A model's processor with the settings for pictures and prompts."""

    settings: BackboneSettings
    model: PreTrainedModel
    processor: Any
    family: Family
    ahead: Ahead = field(default_factory=Ahead, init=False, repr=False)
    _places: dict[tuple[int, str | None], int] = field(default_factory=dict, init=False, repr=False)

    @property
    def image_kwargs(self) -> dict[str, Any]:
        """What calls of the processor receive for the picture settings."""
        return self.family.image_kwargs(self.processor, self.settings.image)

    def open(self, picture: Picture) -> Image.Image:
        """A picture's pixels, as the processor receives them. Raises OSError if there are several."""
        chosen = self.settings.transparency
        return picture.open(self.family.transparency if chosen == "family" else chosen)

    @span(PREPARING)
    def open_parts(self, picture: Picture) -> list[Image.Image]:
        """The pixels of one picture, or of several in their order."""
        return [self.open(part) for part in picture.parts]

    def special_token_in(self, sample: Sample) -> str:
        """The first of the model's own special tokens that a sample's text contains; "" if there is none."""
        return special_token_in(self.processor.tokenizer, f"{sample.before}\n{sample.prompt}")

    @span(PREPARING)
    def inputs(self, samples: Sequence[Sample], second: SecondPass | None = None) -> Any:
        """The processor's tensors for a batch, left-padded, on the model's device.

        If a sample's text contains the model's own special tokens, the model reads them as text; see `as_text`.

        Args:
            second: the second pass of a method, which may see another prompt; None is the first pass.
        """
        return self._moved(self._prepared(samples, second))

    @span(PREPARING)
    def tokens(self, samples: Sequence[Sample], second: SecondPass | None = None) -> dict[str, Any]:
        """`inputs` without the pixels."""
        make = partial(self._tokens, samples, second)
        return dict(self._moved(make() if second else self.ahead.take(asked_of(samples), make)))

    @span(PREPARING)
    def of_picture(self, picture: Picture) -> Any:
        """The processor's tensors for a picture, or for several, with an empty prompt, on the model's device."""
        return self._moved(self.ahead.take(picture.digest, partial(self._of_picture, picture)))

    def work(self, samples: Sequence[Sample]) -> Work:
        """What makes the tokens of a batch ahead."""
        return asked_of(samples), partial(self._tokens, samples)

    def work_of(self, picture: Picture) -> Work:
        """What makes the tensors of a picture ahead."""
        return picture.digest, partial(self._of_picture, picture)

    def _prepared(self, samples: Sequence[Sample], second: SecondPass | None) -> Any:
        """`inputs` on the CPU."""
        images = [self.open_parts(sample.picture) for sample in samples if second is None or second.picture]
        return self._batch([self._text(sample, second) for sample in samples], images)

    def _tokens(self, samples: Sequence[Sample], second: SecondPass | None = None) -> Any:
        batch = self._prepared(samples, second)
        for name in [name for name in batch if name.startswith("pixel_")]:
            del batch[name]
        return batch

    def _of_picture(self, picture: Picture) -> Any:
        images = self.open_parts(picture)
        return self._batch([self.conversation("", len(images))], [images])

    def _moved(self, batch: Any) -> Any:
        return batch.to(self.model.device, dtype=self.model.dtype)

    @span(PREPARING)
    def batch(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Any:
        """The processor's tensors for prompts in the chat template, each with its pictures, or none with any."""
        return self._moved(self._batch(texts, images))

    def _batch(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> Any:
        given: dict[str, Any] = {"return_tensors": "pt", "padding": True, "padding_side": "left"}
        if images:
            taken = [self.family.processor_text(text) for text in texts]
            batch = self.processor(text=taken, images=[list(some) for some in images], **given, **self.image_kwargs)
        else:
            batch = BatchFeature(dict(self.processor.tokenizer(list(texts), **given)))
        batch.pop("labels", None)  # PaliGemma's, for training
        return batch

    def _text(self, sample: Sample, second: SecondPass | None = None) -> str:
        before, prompt = (as_text(self.processor.tokenizer, text) for text in (sample.before, sample.prompt))
        count = len(sample.picture.parts)
        if second is None:
            text, system = self.conversation(prompt, count), None
        else:
            system = second.system
            preface = as_text(self.processor.tokenizer, second.preface)
            text = self.conversation(preface + prompt, count if second.picture else 0, system)
        if not before:
            return text
        place = self._place(count, system)
        return f"{text[:place]}{before}{text[place:]}"

    def _place(self, count: int, system: str | None = None) -> int:
        """Where a number of pictures begin in every prompt. Templates such as LLaVA's move them within the turn."""
        if (count, system) not in self._places:
            try:
                texts = [self.conversation("?", number, system) for number in (count, 0)]
                self._places[count, system] = picture_place(*texts)
            except Exception as error:  # templates raise errors of any kind
                allowed = f"takes no text in front of the picture, as filler=before_image is ({first_line(error)})"
                raise SettingError("backbone.source", self.settings.source, allowed) from error
        return self._places[count, system]

    def conversation(self, prompt: str, count: int = 1, system: str | None = None) -> str:
        """A number of pictures and a prompt in the chat template, up to where the model answers.

        Args:
            system: the system prompt; None is that of the settings, or the template's own.
        """
        turns: list[dict[str, Any]] = []
        system = self.settings.system if system is None else system
        if system is not None:
            turns.append(system_turn(as_text(self.processor.tokenizer, system)))
        turns.append(user_turn(prompt, count))
        return str(self.processor.apply_chat_template(turns, add_generation_prompt=True))


class TokenCache:
    """The tokens of batches, for the next trial, which asks the same batches.

    Preparing pictures only to count their tokens takes as long as a small model's answer. The oldest batches are
    forgotten first, so memory does not grow with the number of samples.
    """

    def __init__(self) -> None:
        self._batches: dict[tuple[object, ...], dict[str, Any]] = {}
        self._bytes = 0

    def __contains__(self, samples: Sequence[Sample]) -> bool:
        """Whether the tokens of a batch's first pass are there."""
        return asked_of(samples) in self._batches

    def get(
        self,
        samples: Sequence[Sample],
        inputs: Callable[[Sequence[Sample]], dict[str, Any]],
        prompt: tuple[object, ...] = (),
    ) -> dict[str, Any]:
        """The result of `inputs` for a batch.

        Args:
            prompt: what else decides the result; see `SecondPass.prompt`.
        """
        key = (*prompt, *asked_of(samples))
        return self._batches[key] if key in self._batches else self.put(samples, inputs(samples), prompt)

    def put(self, samples: Sequence[Sample], tokens: dict[str, Any], prompt: tuple[object, ...] = ()) -> dict[str, Any]:
        """Keep the tokens of a batch, and return them."""
        self._bytes += _size(tokens)
        while self._batches and self._bytes > CACHED_BYTES:
            self._bytes -= _size(self._batches.pop(next(iter(self._batches))))
        self._batches[(*prompt, *asked_of(samples))] = tokens
        return tokens


def asked_of(samples: Sequence[Sample]) -> tuple[object, ...]:
    """All of a batch's samples that decides its tokens."""
    return tuple((sample.before, sample.prompt, sample.picture.digest, sample.opening) for sample in samples)


def _size(batch: dict[str, Any]) -> int:
    """The bytes of a batch's tensors."""
    return sum(x.nbytes for x in batch.values() if isinstance(x, torch.Tensor))
