"""A vision-language model with its processor, loaded by transformers' own classes, that answers batches of questions.

Embedded models and models of the hub take the same path: a folder in the hub's layout, or a hub id.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, LogitsProcessor, PreTrainedModel
from transformers.utils import logging

from tdrs.attention.intervene import session_of, text_decoder
from tdrs.backbones.backbone_settings import BackboneSettings, not_loaded
from tdrs.backbones.checkpoint import check_processor, check_tensors, check_values
from tdrs.backbones.decoding import Answer, StepRecorder, greedy, margin
from tdrs.backbones.families import family_of
from tdrs.backbones.image_embeddings import EmbeddingStore, ImageEncoder, check_without_adapter
from tdrs.backbones.prefixes import read_common
from tdrs.backbones.processors import load_processor
from tdrs.backbones.prompt_encoder import PromptEncoder, TokenCache
from tdrs.backbones.ratings import rate
from tdrs.backbones.tokens import FirstTokens, ends
from tdrs.benchmarks.benchmark import Picture, Sample
from tdrs.benchmarks.prompts import AnswerLength, answer_length
from tdrs.settings import SettingError


@dataclass
class Backbone:
    """A loaded model that answers questions about pictures. `Backbone.of` puts its parts together.

    Attributes:
        prompts: encodes samples with the model's processor.
        images: encodes pictures with the model's vision tower.
        first_tokens: knows the tokens that an answer may begin with.
        tokens: the tokens of the batches asked so far.
        share_prefixes: whether the common beginning of a batch's prompts is read once, if the method allows it.
        next_token_only: whether the last layer computes only the last row inside `intervene`.
    """

    settings: BackboneSettings
    model: PreTrainedModel
    processor: Any
    prompts: PromptEncoder
    images: ImageEncoder
    first_tokens: FirstTokens
    tokens: TokenCache = field(default_factory=TokenCache)
    share_prefixes: bool = True
    next_token_only: bool = True

    @classmethod
    def of(
        cls, settings: BackboneSettings, model: PreTrainedModel, processor: Any, store: EmbeddingStore | None = None
    ) -> "Backbone":
        """A backbone from a model in eval mode and its processor.

        Args:
            store: where image embeddings are kept; None keeps none.
        """
        prompts = PromptEncoder(settings, model, processor, family_of(model.config.model_type))
        return cls(settings, model, processor, prompts, ImageEncoder(prompts, store), FirstTokens(processor))

    def open(self, picture: Picture) -> Image.Image:
        """A picture's pixels, as the model's processor receives them."""
        return self.prompts.open(picture)

    def special_token_in(self, sample: Sample) -> str:
        """The first of the model's own special tokens that a sample's text contains; "" if there is none."""
        return self.prompts.special_token_in(sample)

    def inputs(self, samples: Sequence[Sample]) -> Any:
        """The processor's tensors for a batch, left-padded, on the model's device."""
        return self.prompts.inputs(samples)

    def image_embeddings(self, picture: Picture) -> torch.Tensor:
        """The embeddings of a picture on the model's device, (tokens, width)."""
        return self.images.embeddings(picture)

    def model_inputs(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """What the model's forward takes for a batch: `inputs` with image embeddings instead of pixels."""
        images = self.images.model_inputs([sample.picture for sample in samples])
        return {**self._tokens(samples), "mm_encoder_outputs": images}

    def _tokens(self, samples: Sequence[Sample]) -> dict[str, Any]:
        return self.tokens.get(samples, self.inputs)

    @torch.inference_mode()
    def answer(self, samples: Sequence[Sample], benchmark: str, style: str | None = None) -> list[Answer]:
        """Greedy answers to a batch, under the intervention that the model is in, if any.

        For samples with rated continuations, an answer is their ratings; see `rate`.

        Args:
            benchmark: the name of the real data set, such as `gqa`. With the style, it decides how long an answer may
                be, unless the samples say it.
            style: the style of the prompts; None is the model's own.

        Raises:
            FloatingPointError: a logit that decided a token is NaN.
        """
        if samples[0].rated:
            return rate(samples, self.processor, self._generate)
        most = self.settings.max_new_tokens or max((sample.longest or 0 for sample in samples), default=0) or None
        length = answer_length(style or self.settings.prompt_style, benchmark, most)
        recorder = StepRecorder()
        said = self._generate(samples, length, recorder)
        recorder.check(said, self.model.generation_config.eos_token_id, [sample.id for sample in samples])
        texts = self.processor.tokenizer.batch_decode(said, skip_special_tokens=True)
        assert recorder.first is not None
        return [
            Answer(text.strip(), margin(sample, logs, self.first_tokens))
            for sample, text, logs in zip(samples, texts, recorder.first, strict=True)
        ]

    def _generate(self, samples: Sequence[Sample], length: AnswerLength, processor: LogitsProcessor) -> torch.Tensor:
        """The tokens of greedy answers, (samples, steps); the logits of each step go through the processor."""
        session = session_of(self.model)
        with session.next_token_only() if session and self.next_token_only else nullcontext():
            inputs = None
            whole = not self.prompts.family.reads_in_pieces
            if self.share_prefixes and not whole and (session is None or session.row_local):
                pictures = [sample.picture for sample in samples]
                inputs = read_common(self.model, self.images, session, self._tokens(samples), pictures)
            inputs = inputs or self.model_inputs(samples)
            output = self.model.generate(  # type: ignore[operator]
                **inputs,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                min_new_tokens=length.least,
                max_new_tokens=length.most,
                logits_processor=[processor],
            )
        return output[:, inputs["input_ids"].shape[1] :]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings: what they say about a checkpoint is an error here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def load(settings: BackboneSettings, store: EmbeddingStore | None = None) -> Backbone:
    """Load a model in eval mode on its device, and its processor.

    Args:
        store: where image embeddings are kept; None keeps none.

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
                ignore_mismatched_sizes=True,  # `check_tensors` refuses them, by name
                output_loading_info=True,
            )
        model, info = loaded
        check_tensors(info)
        text_decoder(model)
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
    backbone = Backbone.of(settings, model.eval(), processor, store.of(settings.decisive) if store else None)
    if not backbone.prompts.family.model_type:
        try:
            check_without_adapter(backbone.prompts, backbone.images)
        except SettingError as error:
            raise error.under("backbone") from None
    return backbone
