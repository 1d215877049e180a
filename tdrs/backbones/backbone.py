"""A model with its processor, loaded by transformers' own classes, that answers batches of questions.

It is a vision-language model, or a language model, which reads a passage in the place of a picture. Embedded models and
models of the hub take the same path: a folder in the hub's layout, or a hub id.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, LogitsProcessor, PreTrainedModel
from transformers.utils import logging

from tdrs.attention.intervene import intervene, session_of, text_decoder
from tdrs.attention.method import Method
from tdrs.attention.second_pass import SecondPass, check_second_pass, second_pass_of
from tdrs.attention.session import Session
from tdrs.backbones import token_budget
from tdrs.backbones.adapter import merge
from tdrs.backbones.ahead import Work
from tdrs.backbones.backbone_settings import BackboneSettings, not_loaded
from tdrs.backbones.checkpoint import check_processor, check_tensors, check_values
from tdrs.backbones.decoding import Answer, StepRecorder, greedy, margin
from tdrs.backbones.families import family_of, is_language_model
from tdrs.backbones.image_embeddings import EmbeddingStore, ImageEncoder, check_without_adapter
from tdrs.backbones.limits import Lengths
from tdrs.backbones.prefixes import read_common
from tdrs.backbones.processors import load_processor
from tdrs.backbones.prompt_encoder import PromptEncoder, TokenCache, check_template
from tdrs.backbones.quantisation import check_file_values, compute_alike, quantiser
from tdrs.backbones.ratings import rate
from tdrs.backbones.text_encoder import TextEncoder, load_text_processor
from tdrs.backbones.tokens import FirstTokens, ends
from tdrs.backbones.two_passes import ChangedPicture, Combined, join
from tdrs.benchmarks.benchmark import Picture, Sample
from tdrs.benchmarks.prompts import AnswerLength, answer_length
from tdrs.first_token import compact
from tdrs.settings import SettingError
from tdrs.spans import DECODER, span


@dataclass
class Backbone:
    """A loaded model that answers questions about pictures. `Backbone.of` puts its parts together.

    Attributes:
        prompts: encodes samples with the model's processor.
        images: encodes pictures with the model's vision tower.
        first_tokens: knows the tokens that an answer may begin with.
        lengths: counts the prompts that are longer than the model was made for.
        tokens: the tokens of the batches asked so far.
        share_prefixes: whether the common beginning of a batch's prompts is read once, if the method allows it.
        next_token_only: whether the last layer computes only the last row inside `intervene`.
        prepares_ahead: whether a thread prepares the next batch while the model answers; so on a GPU. On a CPU it
            would take the model's cores.
    """

    settings: BackboneSettings
    model: PreTrainedModel
    processor: Any
    prompts: PromptEncoder
    images: ImageEncoder
    first_tokens: FirstTokens
    lengths: Lengths
    tokens: TokenCache = field(default_factory=TokenCache)
    share_prefixes: bool = True
    next_token_only: bool = True
    prepares_ahead: bool = False

    @classmethod
    def of(
        cls, settings: BackboneSettings, model: PreTrainedModel, processor: Any, store: EmbeddingStore | None = None
    ) -> "Backbone":
        """A backbone from a model in eval mode and its processor.

        Args:
            store: where image embeddings are kept; None keeps none.
        """
        kind = model.config.model_type
        encoder, family = TextEncoder if is_language_model(kind) else PromptEncoder, family_of(kind)
        prompts = encoder(settings, model, processor, family)
        first_tokens, lengths = FirstTokens(processor), Lengths(model, family.windows_hide)
        images, ahead = ImageEncoder(prompts, store), model.device.type == "cuda"
        return cls(settings, model, processor, prompts, images, first_tokens, lengths, prepares_ahead=ahead)

    @property
    def reads_pictures(self) -> bool:
        """Whether the model reads pictures. If not, a sample's passage stands in the place of the picture."""
        return not isinstance(self.prompts, TextEncoder)

    def intervene(self, method: Method, execution: str = "auto") -> AbstractContextManager[Session]:
        """`tdrs.intervene` on this model. In a language model, a passage's tokens have the role of image tokens.

        `answer` runs the second pass of a method that has one.

        Raises:
            SettingError: as `intervene`; or the second pass is not possible with this model.
        """
        check_second_pass(method, pictures=self.reads_pictures)
        second = second_pass_of(method)
        if second and second.system is not None:
            try:
                check_template(self.processor, second.system, self.reads_pictures)
            except SettingError as error:
                raise error.under("intervention") from None
        side = self.prompts.family.tile_side(self.model.config) if self.reads_pictures else 0
        marked = not self.reads_pictures
        return intervene(self.model, method, execution, marked=marked, two_passes=True, tile_side=side)

    def image_tokens(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Which tokens of `inputs` are the image's, or the passage's, (samples, tokens) boolean."""
        if not self.reads_pictures:
            return inputs["marks"]
        return inputs["input_ids"] == self.model.config.image_token_id

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

    def model_inputs(self, samples: Sequence[Sample], second: SecondPass | None = None) -> dict[str, Any]:
        """What the model's forward takes for a batch: `inputs` with image embeddings instead of pixels.

        In a language model's `intervene` block, this also says which tokens are the passage's.

        Args:
            second: a second pass, whose rows follow those of the first; None is one pass.
        """
        given = dict(self._tokens(samples))
        for _ in second.others if second is not None else ():
            given = join(given, self._tokens(samples, second), self.processor.tokenizer.pad_token_id)
        if not self.reads_pictures:
            marks, session = given.pop("marks"), session_of(self.model)
            if session:
                session.mark(marks)
            return given
        pictures = [sample.picture for sample in samples]
        if second is not None and second.picture:
            change = second.change
            seen = [picture if change is None else ChangedPicture.by(picture, change) for picture in pictures]
            pictures += seen * len(second.others)
        return {**given, "mm_encoder_outputs": self.images.model_inputs(pictures)}

    def _first_tokens(self, sample: Sample) -> FirstTokens:
        return FirstTokens(self.processor, sample.opening) if sample.opening else self.first_tokens

    def _tokens(self, samples: Sequence[Sample], second: SecondPass | None = None) -> dict[str, Any]:
        if second is None:
            return self.tokens.get(samples, self.prompts.tokens)
        return self.tokens.get(samples, partial(self.prompts.tokens, second=second), second.prompt)

    def _work(self, samples: Sequence[Sample]) -> Iterator[Work]:
        """What makes ahead what a batch lacks."""
        if samples not in self.tokens:
            yield self.prompts.work(samples)
        if self.reads_pictures:
            yield from self.images.work([sample.picture for sample in samples])

    def parts(self, samples: Sequence[Sample], size: int, tokens: int) -> list[list[int]]:
        """The numbers of a batch's samples in parts of similar length; see `token_budget.cut`.

        The rows of a second pass count as tokens, too.
        """
        session = session_of(self.model)
        second = session.second_pass if session else None
        given = self._tokens(samples)
        lengths = given["attention_mask"].sum(dim=1).tolist()
        found = token_budget.cut(lengths, size, tokens // (1 + len(second.others if second else ())))
        for chosen, numbers in (([samples[number] for number in numbers], numbers) for numbers in found):
            if chosen not in self.tokens and (tensors := token_budget.part(given, samples, numbers)):
                self.tokens.put(chosen, tensors)
        return found

    @torch.inference_mode()
    def answer(
        self, samples: Sequence[Sample], benchmark: str, style: str | None = None, then: Sequence[Sample] = ()
    ) -> list[Answer]:
        """Greedy answers to a batch, under the intervention that the model is in, if any.

        For samples with rated continuations, an answer is their ratings; see `rate`.

        Args:
            benchmark: the name of the real data set, such as `gqa`. With the style, it decides how long an answer may
                be, unless the samples say it.
            style: the style of the prompts; None is the model's own.
            then: the next batch, which may be prepared meanwhile.

        Raises:
            FloatingPointError: a logit that decided a token is NaN.
        """
        if samples[0].rated:
            if (session := session_of(self.model)) is not None:
                check_second_pass(session.method, rated=True)
            return rate(samples, self.processor, self._generate)
        most = self.settings.max_new_tokens or max((sample.longest or 0 for sample in samples), default=0) or None
        length = answer_length(style or self.settings.prompt_style, benchmark, most)
        recorder = StepRecorder()
        said = self._generate(samples, length, recorder, then)
        recorder.check(said, self.model.generation_config.eos_token_id, [sample.id for sample in samples])
        texts = self.processor.tokenizer.batch_decode(said, skip_special_tokens=True)
        assert recorder.first is not None
        return [
            Answer(text.strip(), margin(sample, logs, self._first_tokens(sample)), first_token=compact(logs.numpy()))
            for sample, text, logs in zip(samples, texts, recorder.first, strict=True)
        ]

    def _generate(
        self,
        samples: Sequence[Sample],
        length: AnswerLength,
        processor: LogitsProcessor,
        then: Sequence[Sample] = (),
    ) -> torch.Tensor:
        """The tokens of greedy answers, (samples, steps); the logits of each step go through the processor."""
        self.lengths.see(samples, self._tokens(samples))
        session = session_of(self.model)
        second = session.second_pass if session else None
        # LLM.int8 picks the columns that it keeps in full by all rows of a call: fewer rows would give other numbers
        whole = getattr(self.model, "is_loaded_in_8bit", False)
        with ExitStack() as stack:
            if session and self.next_token_only and not whole:
                stack.enter_context(session.next_token_only())
            if session and second:
                stack.enter_context(session.two_passes(len(samples)))
                processor = Combined(second, processor)
            inputs = None
            pieces = self.reads_pictures and self.prompts.family.reads_in_pieces and not whole and not second
            if self.share_prefixes and pieces and (session is None or session.row_local):
                pictures = [sample.picture for sample in samples]
                inputs = read_common(self.model, self.images, session, self._tokens(samples), pictures)
            inputs = inputs or self.model_inputs(samples, second)
            stack.enter_context(self.prompts.ahead.beside(self._work(then) if then and self.prepares_ahead else ()))
            stack.enter_context(span(DECODER))
            output = self.model.generate(  # type: ignore[operator]
                **inputs,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                min_new_tokens=length.least,
                max_new_tokens=length.most,
                logits_processor=[processor],
            )
        return output[: len(samples), inputs["input_ids"].shape[1] :]


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
    source, revision, pictures = settings.location, settings.commit, settings.reads_pictures
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        settings.check_files()
        bits = settings.weight_bits
        more: dict[str, Any] = {}
        if bits:
            config = quantiser(bits, settings.resolved_dtype)
            more |= {"quantization_config": config} if settings.bits is not None else {}
        if settings.device == "spread":
            more["device_map"] = "auto"
        elif bits:  # quantised weights cannot be moved afterwards
            more["device_map"] = {"": settings.resolved_device}
        processor = (
            load_processor(source, revision, settings.image) if pictures else load_text_processor(source, revision)
        )
        check_template(processor, settings.system, pictures)
        with _quiet():
            loaded: Any = (AutoModelForImageTextToText if pictures else AutoModelForCausalLM).from_pretrained(
                source,
                revision=revision,
                dtype=settings.resolved_dtype,
                attn_implementation=settings.attention,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # `check_tensors` refuses them, by name
                output_loading_info=True,
                **more,
            )
        model, info = loaded
        check_tensors(info)
        if settings.adapter is not None:
            model = merge(model, settings.adapter)
        text_decoder(model)
        check_processor(processor, model.config)
        if bits:
            check_file_values(settings.weight_files, model)
            compute_alike(model, settings.resolved_dtype)
        else:
            check_values(model)
    except SettingError as error:
        raise (error if error.name.startswith("backbone.") else error.under("backbone")) from None
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # each library that reads a part of a folder has errors of its own
        raise not_loaded(settings.source, error, settings.revision) from error
    model.generation_config = greedy(model.generation_config, ends(processor))
    if "device_map" not in more:
        torch.nn.Module.to(model, settings.resolved_device)
    backbone = Backbone.of(settings, model.eval(), processor, store.of(settings.decisive) if store else None)
    if pictures and not backbone.prompts.family.model_type:
        check_without_adapter(backbone.prompts, backbone.images)
    return backbone
