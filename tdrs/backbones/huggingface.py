"""Load a vision-language model and its processor with transformers' own classes; ask it a batch of questions.

The embedded models and the hub's take the same path: a folder in the hub's layout, or a hub id.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from tdrs.attention.intervene import session_of
from tdrs.backbones.backbone_settings import BackboneSettings, not_loaded
from tdrs.backbones.checkpoint import check_processor, check_tensors, check_values
from tdrs.backbones.decoding import Watch, greedy
from tdrs.backbones.features import Features
from tdrs.backbones.prefixes import common
from tdrs.backbones.processors import image_kwargs, load_processor, transparency
from tdrs.backbones.tokens import as_text, ends, first_tokens, holds_marks
from tdrs.benchmarks.benchmark import Picture, Sample
from tdrs.benchmarks.prompts import answer_length
from tdrs.settings import SettingError

PREPARED = 4096  # batches whose tokens are kept


def insert_before_image(before: str, text: str, processor: Any) -> str:
    """A prompt with `before` right before the image; templates (LLaVA's) may move what stands before it in the turn."""
    if not before:
        return text
    marks = ("<|vision_start|>", "<img>", processor.image_token)
    place = min(text.index(mark) for mark in marks if mark in text)
    return f"{text[:place]}{before}{text[place:]}"


@dataclass(frozen=True)
class Answer:
    """What the model said to one sample.

    Attributes:
        text: the decoded answer, stripped.
        margin: log-odds of the gold answer's first token against the best other option's (of any other token, where
            the question is open), at the first answer position.
    """

    text: str
    margin: float


@dataclass
class Backbone:
    """A loaded model with its processor.

    Attributes:
        features: where pictures' features are kept on disk; None keeps none.
        share_prefixes: whether what prompts of a batch begin with alike is read once, where the edit allows it.
        next_token_only: whether of the last layer, inside `intervene`, one row is computed rather than all.
    """

    settings: BackboneSettings
    model: PreTrainedModel
    processor: Any
    features: Features | None = None
    share_prefixes: bool = True
    next_token_only: bool = True
    _first: dict[tuple[str, bool], list[int]] = field(default_factory=dict)
    _prepared: dict[tuple[tuple[str, str, str], ...], dict[str, Any]] = field(default_factory=dict)

    def _first_tokens(self, answer: str, blanks: bool = True) -> list[int]:
        """The tokens this answer may begin with; see `tokens.first_tokens`."""
        if (answer, blanks) not in self._first:
            self._first[answer, blanks] = first_tokens(self.processor, answer, blanks)
        return self._first[answer, blanks]

    def marks_of(self, sample: Sample) -> str:
        """The first of the model's own special tokens that a sample's text spells out; "" for none."""
        return holds_marks(self.processor.tokenizer, f"{sample.before}\n{sample.prompt}")

    def _margin(self, sample: Sample, logs: torch.Tensor) -> float:
        """Of log-probabilities of the first answer token, (vocabulary,)."""
        gold = self._first_tokens(sample.gold)
        best = float(logs[gold].max())
        if sample.options:
            others = [option for option in sample.options if option != sample.gold]
            rest = [i for option in others for i in self._first_tokens(option)]
            if set(gold) & set(rest):  # a blank that all begin with tells nothing
                best = float(logs[self._first_tokens(sample.gold, blanks=False)].max())
                rest = [i for option in others for i in self._first_tokens(option, blanks=False)]
            return best - float(logs[rest].max()) if rest else best
        logs = logs.clone()
        logs[gold] = -torch.inf
        return best - float(logs.max())

    @property
    def _image_kwargs(self) -> dict[str, Any]:
        return image_kwargs(self.processor, self.settings.image)

    def inputs(self, samples: Sequence[Sample]) -> Any:
        """The processor's tensors for a batch, left-padded, on the model's device.

        The model's own special tokens in a sample's text reach it as text; see `tokens.as_text`.
        """
        images = [self.open(sample.picture) for sample in samples]
        texts = [self._text(sample) for sample in samples]
        given = {"return_tensors": "pt", "padding": True, "padding_side": "left", **self._image_kwargs}
        batch = self.processor(text=texts, images=images, **given)
        return batch.to(self.model.device, dtype=self.model.dtype)

    def _text(self, sample: Sample) -> str:
        """The prompt as the chat template has it, up to where the model answers."""
        before, prompt = (as_text(self.processor.tokenizer, text) for text in (sample.before, sample.prompt))
        turns: list[dict[str, Any]] = []
        if self.settings.system is not None:
            system = as_text(self.processor.tokenizer, self.settings.system)
            turns.append({"role": "system", "content": [{"type": "text", "text": system}]})
        turns.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]})
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        return insert_before_image(before, text, self.processor)

    def open(self, picture: Picture) -> Image.Image:
        """A picture's pixels, as the model's processor gets them."""
        return picture.open(transparency(self.model.config.model_type, self.settings.transparency))

    def seen(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """What the model's forward takes: `inputs` with the pictures' features in place of the pixels."""
        return {**self._tokens(samples), "mm_encoder_outputs": self._seen([sample.picture for sample in samples])}

    def _tokens(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """`inputs` without the pixels.

        They are kept for the next trial, which asks the same batches: preparing pictures only to count their tokens
        costs as much as a small model's answer.
        """
        key = tuple((sample.before, sample.prompt, sample.picture.digest) for sample in samples)
        if key not in self._prepared:
            if len(self._prepared) == PREPARED:
                self._prepared.clear()
            self._prepared[key] = {name: x for name, x in self.inputs(samples).items() if name != "pixel_values"}
        return self._prepared[key]

    def _begun(self, samples: Sequence[Sample]) -> dict[str, Any] | None:
        """What `generate` takes to go on after the prompts' common beginnings, which are read here.

        None where they have none, or where the edit at work looks at more than each row's past.
        """
        session = session_of(self.model)
        if not self.share_prefixes or (session and not session.row_local):
            return None
        tokens = self._tokens(samples)
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        prefixes = common(ids, mask, [sample.picture.digest for sample in samples])
        if prefixes is None:
            return None
        first, columns = prefixes.first, prefixes.columns
        image = ids == self.model.config.image_token_id
        read = image[:, :columns].sum(dim=1).tolist()  # image tokens before the cut; it may go through an image
        positions = self.model._prepare_position_ids_for_generation(ids, dict(tokens))  # type: ignore[operator]
        cache = self.model(
            input_ids=ids[first, :columns],
            attention_mask=mask[first, :columns],
            position_ids=positions[..., first, :columns],
            mm_encoder_outputs=self._seen([samples[i].picture for i in first], [slice(read[i]) for i in first]),
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        prefixes.spread(cache)
        if session:
            session.context.rearrange(prefixes.like, prefixes.index, cache)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        if image[:, columns:].any():
            rest = [slice(count, None) for count in read]
            given["mm_encoder_outputs"] = self._seen([sample.picture for sample in samples], rest)
        return given

    def _seen(
        self, pictures: Sequence[Picture], parts: Sequence[slice] | None = None
    ) -> dict[str, BaseModelOutputWithPooling]:
        """What the vision tower and its projector make of pictures, for `mm_encoder_outputs`.

        The tower sees one picture at a time, so that features do not depend on the batch or on what was kept before.

        Args:
            parts: which of each picture's tokens; None is all.
        """
        unlike = {picture.digest: picture for picture in pictures}  # several questions are about one
        known = {digest: self.features_of(picture) for digest, picture in unlike.items()}
        found = [known[picture.digest] for picture in pictures]
        if parts is not None:
            found = [features[part] for features, part in zip(found, parts, strict=True)]
        as_tensor = self.model.config.model_type == "internvl"  # the others take a list
        features: Any = torch.cat(found) if as_tensor else found
        return {"image": BaseModelOutputWithPooling(pooler_output=features)}

    def features_of(self, picture: Picture) -> torch.Tensor:
        """A picture's features on the model's device, (tokens, width): kept ones, or made and kept."""
        kept = self.features.get(picture.digest) if self.features else None
        if kept is None:
            kept = self._look(picture)
            if self.features:
                self.features.put(picture.digest, kept)
        return kept.to(self.model.device)

    @torch.inference_mode()
    def _look(self, picture: Picture) -> torch.Tensor:
        """A picture's features, (tokens, width)."""
        text, image = [self.processor.image_token], [self.open(picture)]
        batch = self.processor(text=text, images=image, return_tensors="pt", **self._image_kwargs)
        given = {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
        given = {name: value.to(self.model.device) for name, value in given.items()}
        given["pixel_values"] = given["pixel_values"].to(self.model.dtype)
        output = self.model.get_image_features(**given, return_dict=True)  # type: ignore[operator]
        found = torch.cat(list(output.pooler_output)).contiguous()
        if not found.isfinite().all():
            raise FloatingPointError("NaN in the features of a picture")
        return found

    @torch.inference_mode()
    def answer(self, samples: Sequence[Sample], benchmark: str, style: str | None = None) -> list[Answer]:
        """Greedy answers to a batch, under whatever intervention the model is in.

        Args:
            benchmark: the real set's name, e.g. `gqa`, which with the style decides how long an answer may be.
            style: whose prompt is asked; None is the model's own.

        Raises:
            FloatingPointError: a logit that decided a token is NaN.
        """
        session = session_of(self.model)
        length = answer_length(style or self.settings.prompt_style, benchmark, self.settings.max_new_tokens)
        watch = Watch()
        with session.next_token_only() if session and self.next_token_only else nullcontext():
            inputs = self._begun(samples) or self.seen(samples)
            output = self.model.generate(  # type: ignore[operator]
                **inputs,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                min_new_tokens=length.least,
                max_new_tokens=length.most,
                logits_processor=[watch],
            )
        said = output[:, inputs["input_ids"].shape[1] :]
        watch.check(said, self.model.generation_config.eos_token_id, [sample.id for sample in samples])
        texts = self.processor.tokenizer.batch_decode(said, skip_special_tokens=True)
        assert watch.first is not None
        return [
            Answer(text.strip(), self._margin(sample, logs))
            for sample, text, logs in zip(samples, texts, watch.first, strict=True)
        ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings: what they say of a checkpoint is an error here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def load(settings: BackboneSettings, features: Features | None = None) -> Backbone:
    """The model in eval mode on its device, and its processor.

    Args:
        features: where pictures' features are kept.

    Raises:
        SettingError: the files or the weights are missing, damaged or incomplete.
    """
    source, revision = settings.location, settings.commit
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        settings.check_files()
        processor = load_processor(source, revision, settings.image)
        with _quiet():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                source,
                revision=revision,
                dtype=settings.resolved_dtype,
                attn_implementation=settings.attention,
                use_safetensors=True,
                trust_remote_code=False,
                device_map="auto" if settings.device == "spread" else None,
                ignore_mismatched_sizes=True,  # they are listed, and refused here
                output_loading_info=True,
            )
        model, info = loaded
        check_tensors(info)
        check_processor(processor, model.config)
        check_values(model)
    except SettingError as error:
        raise error.under("backbone") from None
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each library that reads a part of a folder has errors of its own
        raise not_loaded(settings.source, error, settings.revision) from error
    model.generation_config = greedy(model.generation_config, ends(processor))
    if settings.device != "spread":
        torch.nn.Module.to(model, settings.resolved_device)
    if features:
        features = features.of(settings.decisive)
    return Backbone(settings, model.eval(), processor, features)
