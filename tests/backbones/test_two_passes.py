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
from tdrs.attention.method import Method
from tdrs.attention.second_pass import SecondPass
from tdrs.backbones import Backbone
from tdrs.backbones.two_passes import ChangedPicture, Combined, join
from tdrs.benchmarks import Sample
from tdrs.benchmarks.prompts import answer_length
from tdrs.configuration import choice
from tdrs.evaluation import evaluate
from tdrs.interventions.pai import PAI
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
) -> tuple[str, np.ndarray]:
    """The greedy answer to one sample, and the combined log-probabilities of its first token."""
    first, ends = backbone.inputs([sample]), backbone.model.generation_config.eos_token_id
    least = answer_length(backbone.settings.prompt_style, "gqa", None).least
    said: list[int] = []
    distribution = np.zeros(0)
    for step in range(20):
        one, two = logits_of(backbone, first, said), logits_of(backbone, second, said)
        kept = [token for token in range(len(one)) if step >= least or token not in ends]  # an answer is not empty
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
    assert "out of memory: batches of 32 were asked 2 samples at a time" in found.notes


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
        second.combined(torch.zeros(1, 3), torch.zeros(1, 3), 0)


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
