"""Two passes as one batch, against separate calls of the stock model whose logits are combined by hand."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

import tdrs
from tdrs import backbones, benchmarks
from tdrs.attention.in_order import Together
from tdrs.attention.method import Method
from tdrs.attention.second_pass import SecondPass
from tdrs.backbones import Backbone
from tdrs.backbones.two_passes import ChangedPicture, Combined, join
from tdrs.benchmarks import Sample
from tdrs.benchmarks.prompts import answer_length
from tdrs.configuration import choice
from tdrs.evaluation import evaluate
from tdrs.interventions.adapt_vis import AdaptVis
from tdrs.interventions.icd import ICD
from tdrs.interventions.m3id import M3ID
from tdrs.interventions.pai import PAI
from tdrs.interventions.scaling_vis import ScalingVis
from tdrs.interventions.sid import SID
from tdrs.interventions.vcd import VCD, signal
from tdrs.settings import SettingError

MODELS = ("mini_llava", "mini_internvl", "mini_qwen2_5_vl")


@pytest.fixture(scope="module", params=MODELS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbones.load(backbones.from_settings(choice("backbone", request.param)))


def asked(backbone: Backbone, count: int = 5, **settings: Any) -> list[Sample]:
    """Questions of two kinds, so that prompts differ in length and answers in their number of tokens."""
    samples: list[Sample] = []
    for name in ("mini_gqa", "mini_textvqa"):
        benchmark = benchmarks.from_settings({"name": name, "gap": 7, **settings})
        samples += benchmarks.load(benchmark, "tuning", 24, backbone.settings.prompt_style)[:count]
    return samples


def prompt_alone(backbone: Backbone, sample: Sample) -> dict[str, Any]:
    """The tokens of a prompt without its picture, by the processor's own chat template and tokenizer."""
    turn = {"role": "user", "content": [{"type": "text", "text": sample.prompt}]}
    text = backbone.processor.apply_chat_template([turn], add_generation_prompt=True)
    return dict(backbone.processor.tokenizer([text], return_tensors="pt"))


@torch.inference_mode()
def logits_of(backbone: Backbone, inputs: Any, said: Sequence[int]) -> np.ndarray:
    """The stock model's logits after a prompt and the tokens said so far, in one call without a cache."""
    given = dict(inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in given:
            fill = {"input_ids": list(said), "attention_mask": [1] * len(said)}.get(name, [0] * len(said))
            given[name] = torch.cat([given[name], torch.tensor([fill], dtype=given[name].dtype)], dim=1)
    return np.asarray(backbone.model(**given, use_cache=False).logits[0, -1].double())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits)


def by_hand(
    backbone: Backbone,
    sample: Sample,
    second: Any,
    combine: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
    beta: float,
    edit: Method | None = None,
) -> tuple[str, np.ndarray]:
    """The greedy answer to one sample, and the combined log-probabilities of its first token; `edit` is the first's."""
    first, ends = backbone.inputs([sample]), backbone.model.generation_config.eos_token_id
    length = answer_length(backbone.settings.prompt_style, "gqa", backbone.settings.max_new_tokens)
    said: list[int] = []
    distribution = np.zeros(0)
    for step in range(length.most):
        with tdrs.intervene(backbone.model, edit or tdrs.Stock()):
            one = logits_of(backbone, first, said)
        two = logits_of(backbone, second, said)
        kept = [
            token for token in range(len(one)) if step >= length.least or token not in ends
        ]  # an answer is not empty
        plausible = log_softmax(one[kept]) - log_softmax(one[kept]).max() >= (np.log(beta) if beta else -np.inf)
        logs = np.full(len(one), -np.inf)
        logs[kept] = log_softmax(combine(one[kept], two[kept], step))
        distribution = logs if step == 0 else distribution
        said.append(kept[int(np.where(plausible, logs[kept], -np.inf).argmax())])
        if said[-1] in ends:
            break
    return backbone.processor.tokenizer.decode(said, skip_special_tokens=True).strip(), distribution


def check(found: Sequence[Any], expected: Sequence[tuple[str, np.ndarray]]) -> None:
    """The same answers, and the same distributions of the first token."""
    assert [answer.text for answer in found] == [text for text, _ in expected]
    for answer, (_, logs) in zip(found, expected, strict=True):
        tokens, shown, _ = json.loads(answer.first_token)
        assert shown == pytest.approx(logs[tokens].tolist(), abs=2e-3)


@pytest.mark.parametrize(("gamma", "beta"), [(2.0, 0.1), (0.2, 0.0), (4.0, 0.5)])
def test_a_contrast_with_no_picture_is_that_of_two_separate_calls(
    backbone: Backbone, gamma: float, beta: float
) -> None:
    """In a batch that is padded on the left, with one cache for prompts with and without a picture."""
    samples = asked(backbone)
    with backbone.intervene(PAI(alpha=0, gamma=gamma, beta=beta)):
        found = backbone.answer(samples, "gqa")
    expected = [
        by_hand(backbone, one, prompt_alone(backbone, one), lambda i, t, _: gamma * (i - t) + t, beta)
        for one in samples
    ]
    check(found, expected)
    for answer, sample, (_, logs) in zip(found, samples, expected, strict=True):
        right = tdrs.backbones.decoding.margin(sample, torch.tensor(logs), backbone.first_tokens)
        assert answer.margin == pytest.approx(right, abs=5e-3)
    assert len({answer.text for answer in found}) > 3


def test_three_passes_are_those_of_separate_calls(backbone: Backbone) -> None:
    """AdaptVis takes each sample's whole answer from the factor that the stock model's confidence chooses."""
    samples = asked(backbone, 4)

    def answers(method: Method) -> list[Any]:
        with backbone.intervene(method):
            return backbone.answer(samples, "gqa")

    stock = replace(backbone, share_prefixes=False).answer(samples, "gqa")
    confidence = [np.exp(json.loads(one.first_token)[1][0]) for one in stock]
    threshold = float(np.median(confidence))
    low, high = (answers(ScalingVis(weight=weight)) for weight in (0.0, 3.0))
    expected = [a if sure < threshold else b for a, b, sure in zip(low, high, confidence, strict=True)]
    assert {id(one) for one in expected} & {id(one) for one in low}
    assert {id(one) for one in expected} & {id(one) for one in high}
    assert [one.margin for one in low] != pytest.approx([one.margin for one in high], abs=0.05)
    found = answers(AdaptVis(weight1=0.0, weight2=3.0, threshold=threshold))
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.margin for one in found] == pytest.approx([one.margin for one in expected], abs=5e-3)


@dataclass(frozen=True, kw_only=True)
class Average(Method):
    """The mean of two passes; `sees` says what the second one sees."""

    sees: Any = None
    share: float = 0.5

    @property
    def second_pass(self) -> SecondPass | None:
        return SecondPass(combine=lambda a, b, step: (1 - self.share) * a + self.share * b, **(self.sees or {}))


def test_a_second_pass_that_sees_the_same_changes_nothing(backbone: Backbone) -> None:
    samples = asked(backbone)
    stock = replace(backbone, share_prefixes=False).answer(samples, "gqa")
    with backbone.intervene(Average()):
        found = backbone.answer(samples, "gqa")
    assert [answer.text for answer in found] == [answer.text for answer in stock]
    assert [answer.margin for answer in found] == pytest.approx([answer.margin for answer in stock], abs=1e-3)


@pytest.mark.parametrize("sees", [{"preface": "left right top. "}, {"picture": False, "preface": "yes no. "}])
def test_a_second_pass_with_another_prompt(backbone: Backbone, sees: dict[str, Any]) -> None:
    samples = asked(backbone, 3)
    with backbone.intervene(Average(sees=sees, share=0.7)):
        found = backbone.answer(samples, "gqa")
    expected = []
    for sample in samples:
        longer = replace(sample, prompt=sees["preface"] + sample.prompt)
        second = prompt_alone(backbone, longer) if "picture" in sees else backbone.inputs([longer])
        expected.append(by_hand(backbone, sample, second, lambda a, b, _: 0.3 * a + 0.7 * b, 0))
    check(found, expected)


def test_text_in_front_of_the_picture_stays_without_it(backbone: Backbone) -> None:
    (sample,) = asked(backbone, 1, filler="before_image")[:1]
    assert sample.before
    second = SecondPass(combine=lambda a, b, _: a, picture=False)
    whole = replace(sample, before="", prompt=f"{sample.before}{sample.prompt}")
    found, expected = backbone.prompts.inputs([sample], second), prompt_alone(backbone, whole)
    assert torch.equal(found["input_ids"], expected["input_ids"])


def test_the_edit_is_that_of_the_first_pass_alone(backbone: Backbone) -> None:
    """The logits of the first pass are those under the edit, those of the second are the stock model's."""
    samples = asked(backbone, 3)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Spy(PAI):
        def _contrast(self, image: torch.Tensor, text: torch.Tensor, step: int) -> torch.Tensor:
            seen.append((image, text))
            return image

    with backbone.intervene(Spy(alpha=2.0, beta=0)):
        found = backbone.answer(samples, "gqa")
    with backbone.intervene(PAI(alpha=2.0, gamma=1)):
        edited = backbone.answer(samples, "gqa")
    assert [answer.text for answer in found] == [answer.text for answer in edited]
    assert [answer.margin for answer in found] == pytest.approx([answer.margin for answer in edited], abs=1e-3)
    for number, sample in enumerate(samples):
        alone = logits_of(backbone, prompt_alone(backbone, sample), [])
        shown = seen[0][1][number].double().numpy()
        some = np.isfinite(shown)  # all but the end of an answer
        assert log_softmax(shown[some]) == pytest.approx(log_softmax(alone[some]), abs=2e-3)
    assert not np.allclose(seen[0][0][0], logits_of(backbone, backbone.inputs(samples[:1]), []), atol=1e-2)


def test_answers_depend_on_no_batch(backbone: Backbone) -> None:
    samples = asked(backbone, 3)
    with backbone.intervene(PAI(gamma=2.0)):
        together, alone = (
            [answer for first in range(0, 6, size) for answer in backbone.answer(samples[first : first + size], "gqa")]
            for size in (6, 1)
        )
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [answer.margin for answer in together] == pytest.approx([answer.margin for answer in alone], abs=2e-3)


@pytest.mark.parametrize("execution", ["reference", "blocked"])
def test_both_executions_answer_alike(backbone: Backbone, execution: str) -> None:
    samples = asked(backbone, 2)
    with backbone.intervene(PAI(gamma=2.0), execution):
        found = backbone.answer(samples, "gqa")
    with backbone.intervene(PAI(gamma=2.0)):
        assert [answer.text for answer in backbone.answer(samples, "gqa")] == [answer.text for answer in found]


def test_memory_that_runs_out_splits_a_batch(mini_llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample makes two rows; here, six rows fit."""
    samples, benchmark = asked(mini_llava, 6)[:6], benchmarks.from_settings({"name": "mini_gqa"})
    method = PAI(gamma=2.0)
    whole = evaluate(mini_llava, benchmark, samples, method)
    generate = mini_llava.model.generate

    def little(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(**inputs)

    monkeypatch.setattr(mini_llava.model, "generate", little)
    found = evaluate(mini_llava, benchmark, samples, method)
    assert [record.prediction for record in found.records] == [record.prediction for record in whole.records]
    assert "out of memory: batches of 32 were asked 2 samples at a time (set batch_size=2)" in found.notes


@pytest.mark.parametrize("half", [0, 1])
def test_a_nan_in_either_pass_is_noticed(mini_llava: Backbone, half: int) -> None:
    """Also where the method itself would hide it."""
    samples = asked(mini_llava, 2)

    def poison(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[half * 4 + 2, -1, 3] = torch.nan
        return output

    class Hides(Average):
        @property
        def second_pass(self) -> SecondPass:
            return SecondPass(combine=lambda a, b, step: torch.where(a.isnan(), 0, a))

    hook = mini_llava.model.lm_head.register_forward_hook(poison)
    try:
        with mini_llava.intervene(Hides()), pytest.raises(FloatingPointError, match=f"sample {samples[2].id} "):
            mini_llava.answer(samples, "gqa")
    finally:
        hook.remove()


class Reader:
    """Keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(scores)
        return scores


def test_implausible_tokens_are_not_chosen_but_keep_their_logits() -> None:
    """By hand: with probabilities of 6, 3 and 1 tenths in the first pass and β = 0.4, the third is implausible."""
    first, second = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.8, 0.1, 0.1]).log()
    reader: Any = Reader()
    combine = Combined(SecondPass(combine=lambda a, b, _: 2 * a - b, plausibility=0.4), reader)
    chosen = combine(torch.zeros(2, 1), torch.stack([first, second]))
    logits = torch.tensor([[0.45, 0.9, 0.1]]).log()  # p² / q
    torch.testing.assert_close(reader.seen[0], logits)
    logits[0, 2] = -torch.inf
    torch.testing.assert_close(chosen, logits.expand(2, 3))


def test_excluded_tokens_stay_excluded() -> None:
    """`generate` sets −∞ in both passes, whose difference is no number."""
    scores = torch.tensor([[-torch.inf, 1.0, 2.0], [-torch.inf, 4.0, 8.0]])
    reader: Any = Reader()
    Combined(SecondPass(combine=lambda a, b, _: 2 * a - b), reader)(torch.zeros(2, 1), scores)
    assert reader.seen[0].tolist() == [[-torch.inf, -2.0, -4.0]]
    scores[1, 2] = -torch.inf  # in one pass alone, it comes from a calculation that failed
    Combined(SecondPass(combine=lambda a, b, _: 2 * a - b), reader)(torch.zeros(2, 1), scores)
    assert reader.seen[1].isnan()[:, 1:].all()


@pytest.mark.parametrize(("returned", "shown"), [(None, "NoneType"), (torch.zeros(1, 2), r"torch.float32 \(1, 2\)")])
def test_a_combination_that_is_no_logits_is_named(returned: Any, shown: str) -> None:
    second = SecondPass(combine=lambda a, b, _: returned)
    with pytest.raises(ValueError, match=f"combine returned {shown}, not torch.float32"):
        second.combined(torch.zeros(1, 3), torch.zeros(1, 3), step=0)


def test_passes_of_unlike_length_are_padded_on_the_left() -> None:
    first = {
        "input_ids": torch.tensor([[1, 2, 3]]),
        "attention_mask": torch.ones(1, 3),
        "token_type_ids": torch.ones(1, 3),
    }
    second = {"input_ids": torch.tensor([[4]]), "attention_mask": torch.ones(1, 1)}
    for one, two, rows in ((first, second, [0, 1]), ({**second, "token_type_ids": torch.ones(1, 1)}, first, [1, 0])):
        found = join({**one, "sizes": torch.tensor([[8, 9]])}, two, 7)
        assert found["input_ids"][rows].tolist() == [[1, 2, 3], [7, 7, 4]]
        assert found["attention_mask"][rows].tolist() == [[1, 1, 1], [0, 0, 1]]
        assert found["sizes"].tolist() == [[8, 9]]


def test_rated_continuations_are_refused_in_one_line(mini_llava: Backbone) -> None:
    samples = [replace(sample, rated=("yes", "no")) for sample in asked(mini_llava, 1)]
    with mini_llava.intervene(PAI()), pytest.raises(SettingError, match="intervention = 'PAI': combines two passes"):
        mini_llava.answer(samples, "gqa")


def test_intervene_alone_is_refused_in_one_line(mini_llava: Backbone) -> None:
    reason = r"method = 'PAI': combines two forward passes, and intervene edits one: .* or PAI\(gamma=1\)"
    with pytest.raises(SettingError, match=reason), tdrs.intervene(mini_llava.model, PAI()):
        pass


@pytest.fixture
def changed(backbone: Backbone) -> Callable[[str], torch.Tensor]:
    sample = asked(backbone, 1)[0]

    def embeddings(name: str) -> torch.Tensor:
        change = tdrs.attention.second_pass.PictureChange(
            name, lambda x, generator: x + torch.randn(x.shape, generator=generator)
        )
        return backbone.images.embeddings(ChangedPicture.by(sample.picture, change))

    return embeddings


def test_a_changed_picture_depends_on_its_change_alone(backbone: Backbone, changed: Callable[[str], Any]) -> None:
    sample = asked(backbone, 1)[0]
    assert torch.equal(changed("noise, seed 0"), changed("noise, seed 0"))
    assert not torch.allclose(changed("noise, seed 0"), changed("noise, seed 1"), atol=1e-3)
    assert not torch.allclose(changed("noise, seed 0"), backbone.image_embeddings(sample.picture), atol=1e-3)


def test_vcd_is_that_of_two_separate_calls(backbone: Backbone) -> None:
    """The second call receives noised pixels; the frames that Qwen makes of a picture have equal noise."""
    samples = asked(backbone, 3)
    method = VCD(noise_step=700, alpha=0.8, seed=5)
    change = method.second_pass.change
    assert change is not None
    with backbone.intervene(method):
        found = backbone.answer(samples, "gqa")
    expected = []
    for sample in samples:
        second = backbone.inputs([sample])
        seed = int(ChangedPicture.by(sample.picture, change).digest[:15], 16)
        pixels = second["pixel_values"]
        if backbone.settings.name == "mini_qwen2_5_vl":
            pixels = pixels.unflatten(1, (3, 2, -1))[:, :, :1]  # colours, frames, pixels of a patch
        noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
        left = signal(700)
        noised = np.sqrt(left) * pixels + np.sqrt(1 - left) * noise
        if backbone.settings.name == "mini_qwen2_5_vl":
            noised = noised.expand(-1, -1, 2, -1).flatten(1)
        expected.append(by_hand(backbone, sample, {**second, "pixel_values": noised}, contrast(0.8), 0.1))
    check(found, expected)


@pytest.mark.parametrize("place", ["system", "question"])
def test_icd_is_that_of_two_separate_calls(backbone: Backbone, place: str) -> None:
    samples = asked(backbone, 3)
    with backbone.intervene(ICD(place=place, instruction="Is it a moon?")):
        found = backbone.answer(samples, "gqa")
    expected = []
    for sample in samples:
        content = [{"type": "image"}, {"type": "text", "text": sample.prompt}]
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if place == "system":
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": "Is it a moon?"}]})
        else:
            content[1]["text"] = f"Is it a moon? {sample.prompt}"
        text = backbone.processor.apply_chat_template(turns, add_generation_prompt=True)
        second = backbone.processor(text=[text], images=[[sample.image]], return_tensors="pt")
        expected.append(by_hand(backbone, sample, second, contrast(1.0), 0.1))
    check(found, expected)


def test_another_method_edits_the_first_pass_alone(backbone: Backbone) -> None:
    """A temperature beside a contrast; its edit of a row is the same with a cache and without one."""
    samples, edit = asked(backbone, 3), tdrs.Temperature(tau=0.7)
    with backbone.intervene(Together(methods=(edit, PAI(alpha=0, gamma=2.0)))):
        found = backbone.answer(samples, "gqa")
    expected = [
        by_hand(backbone, one, prompt_alone(backbone, one), lambda i, t, _: 2 * (i - t) + t, 0.1, edit)
        for one in samples
    ]
    check(found, expected)


def test_m3id_grows_with_the_answer(backbone: Backbone) -> None:
    samples = asked(backbone)
    backbone = replace(backbone, settings=replace(backbone.settings, max_new_tokens=5))
    with backbone.intervene(M3ID(rate=1.2, beta=0)):
        found = backbone.answer(samples, "gqa")
    expected = [
        by_hand(backbone, one, prompt_alone(backbone, one), lambda a, b, t: a + (np.exp(1.2 * t) - 1) * (a - b), 0)
        for one in samples
    ]
    check(found, expected)
    stock = replace(backbone, share_prefixes=False).answer(samples, "gqa")
    assert [answer.margin for answer in found] == pytest.approx([answer.margin for answer in stock], abs=1e-3)


def test_the_combination_is_told_the_number_of_the_answer_token(mini_llava: Backbone) -> None:
    """Here the token of that number is the answer, whatever the passes say."""

    class Counts(Average):
        @property
        def second_pass(self) -> SecondPass:
            return SecondPass(combine=lambda a, b, step: torch.zeros_like(a).index_fill(1, torch.tensor(20 + step), 9))

    with mini_llava.intervene(Counts()):
        found = mini_llava.answer(asked(mini_llava, 1), "gqa")
    most = mini_llava.settings.max_new_tokens
    assert most
    said = mini_llava.processor.tokenizer.decode(list(range(20, 20 + most)), skip_special_tokens=True)
    assert [answer.text for answer in found] == [said.strip()] * 2


def contrast(alpha: float) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    return lambda first, second, step: (1 + alpha) * first - alpha * second


class Masked:
    """The stock model with eager attention. Each call hides image tokens in all layers but the first, as SID does."""

    def __init__(self, backbone: Backbone, sample: Sample, keep: float) -> None:
        self.backbone, self.keep = backbone, keep
        self.inputs: Any = backbone.inputs([sample])
        self.image = (self.inputs["input_ids"][0] == backbone.model.config.image_token_id).nonzero()[:, 0]
        self.cache: Any = None
        self.hidden = torch.tensor([], dtype=torch.long)

    def rank(self, module: Any, args: Any, output: Any) -> None:
        weights = output[1][0].mean(dim=0)[-1][self.image]
        kept = max(1, round(self.keep * len(self.image)))
        self.hidden = self.image[weights.argsort()[kept:]]

    def mask(self, module: Any, args: Any, kwargs: Any) -> Any:
        masked = kwargs["attention_mask"].clone()
        masked[..., self.hidden] = torch.finfo(masked.dtype).min
        return args, {**kwargs, "attention_mask": masked}

    @torch.inference_mode()
    def __call__(self, token: int | None) -> np.ndarray:
        """The next token's logits after one more token; None is the prompt."""
        layers = self.backbone.model.get_decoder().layers
        hooks = [layers[0].self_attn.register_forward_hook(self.rank)]
        hooks += [layer.self_attn.register_forward_pre_hook(self.mask, with_kwargs=True) for layer in layers[1:]]
        given = dict(self.inputs) if token is None else {"input_ids": torch.tensor([[token]])}
        output = self.backbone.model(**given, past_key_values=self.cache, use_cache=True)
        for hook in hooks:
            hook.remove()
        self.cache = output.past_key_values
        return np.asarray(output.logits[0, -1].double())


def test_sid_is_that_of_a_pass_with_a_mask_of_its_own(backbone: Backbone) -> None:
    """The ranking is done again for each answer token, in a cache of its own."""
    samples, method = asked(backbone, 4), SID(keep=0.2, alpha=2.0, beta=0)
    with backbone.intervene(method):
        found = backbone.answer(samples, "gqa")
    length = answer_length(backbone.settings.prompt_style, "gqa", backbone.settings.max_new_tokens)
    ends = backbone.model.generation_config.eos_token_id
    for sample, answer in zip(samples, found, strict=True):
        said: list[int] = []
        masked = Masked(backbone, sample, 0.2)
        backbone.model.set_attn_implementation("eager")
        try:
            for step in range(length.most):
                first = logits_of(backbone, backbone.inputs([sample]), said)
                logs = contrast(2.0)(first, masked(said[-1] if said else None), step)
                if step < length.least:
                    logs[ends] = -np.inf
                if step == 0:
                    tokens, shown, _ = json.loads(answer.first_token)
                    assert shown == pytest.approx(log_softmax(logs)[tokens].tolist(), abs=3e-3)
                said.append(int(logs.argmax()))
                if said[-1] in ends:
                    break
        finally:
            backbone.model.set_attn_implementation("sdpa")
        assert answer.text == backbone.processor.tokenizer.decode(said, skip_special_tokens=True).strip()


@pytest.mark.parametrize("method", [VCD(alpha=0), ICD(alpha=0), M3ID(rate=0), SID(keep=1), PAI(alpha=0, gamma=1)])
def test_neutral_settings_are_stock_bit_for_bit(mini_llava: Backbone, method: Method) -> None:
    samples = asked(mini_llava, 2)
    with mini_llava.intervene(method):
        found = mini_llava.answer(samples, "gqa")
    with mini_llava.intervene(tdrs.Stock()):
        assert found == mini_llava.answer(samples, "gqa")


@pytest.mark.parametrize("method", [VCD(), ICD(), SID()])
def test_a_loaded_model_is_asked_like_a_backbone(mini_llava: Backbone, method: Method) -> None:
    found = tdrs.evaluate(mini_llava.model, mini_llava.processor, "mini_pope", method, limit=4)
    benchmark = benchmarks.from_settings(choice("dataset", "mini_pope"))
    samples = benchmarks.load(benchmark, "held_out", 4, mini_llava.settings.prompt_style)
    expected = evaluate(mini_llava, benchmark, samples, method)
    assert [record.margin for record in found.records] == [record.margin for record in expected.records]


def test_a_template_that_refuses_a_system_prompt_is_named(
    mini_llava: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
    monkeypatch.setattr(mini_llava.processor, "chat_template", refuses + mini_llava.processor.chat_template)
    with pytest.raises(SettingError, match="the chat template refuses it"), mini_llava.intervene(ICD()):
        pass
    with mini_llava.intervene(ICD(place="question")):
        assert mini_llava.answer(asked(mini_llava, 1), "gqa")
