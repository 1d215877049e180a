"""Batches in parts by a budget of tokens: what the processor would give, the order of the records, the key."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tdrs import TDRS, Stock, backbones, benchmarks
from tdrs.attention.method import Method
from tdrs.backbones import Backbone
from tdrs.backbones.token_budget import cut, part
from tdrs.benchmarks import Samples
from tdrs.configuration import compose, plain
from tdrs.evaluation import complete, plan, run_batches
from tdrs.interventions import from_settings
from tdrs.records import Records


def load(name: str) -> Backbone:
    return backbones.load(backbones.from_settings(plain(compose("evaluate", [f"backbone={name}"]))["backbone"]))


def samples_of(name: str, count: int, backbone: Backbone) -> Samples:
    benchmark = benchmarks.from_settings({"name": name, "gap": 3})
    return benchmarks.load(benchmark, "tuning", count, backbone.settings.prompt_style)


def test_the_longest_are_asked_first_and_no_part_is_too_large() -> None:
    lengths = [10, 60, 20, 60, 30, 200, 20]
    assert cut(lengths, 32, 100) == [[5], [1], [3], [4, 2, 6], [0]]
    assert cut(lengths, 2, 100) == [[5], [1], [3], [4, 2], [6, 0]]
    assert cut(lengths, 32, 10**6) == [[5, 1, 3, 4, 2, 6, 0]]
    assert cut(lengths, 1, 10**6) == [[5], [1], [3], [4], [2], [6], [0]]
    for most in range(1, 500, 7):
        parts = cut(lengths, 3, most)
        assert sorted(number for one in parts for number in one) == list(range(7))
        assert all(len(one) == 1 or len(one) * max(lengths[n] for n in one) <= most for one in parts)


@pytest.mark.parametrize("name", ["mini_llava", "mini_internvl", "mini_qwen2_5_vl"])
def test_a_part_has_the_tensors_of_these_prompts_alone(name: str) -> None:
    backbone = load(name)
    samples = list(samples_of("mini_textvqa", 12, backbone))[:7]
    tensors = backbone.prompts.tokens(samples)
    lengths = tensors["attention_mask"].sum(dim=1)
    shortest = int(lengths.argmin())
    assert part({**tensors, "unknown": torch.zeros(3)}, samples, [0]) is None  # the processor is asked
    for numbers in ([3], [4, 0, 6], [shortest], list(range(7))):
        expected = backbone.prompts.tokens([samples[number] for number in numbers])
        found = part(tensors, samples, numbers)
        assert found is not None
        assert set(found) == set(expected)
        for kind, value in expected.items():
            assert torch.equal(found[kind], value), kind


@pytest.mark.parametrize("method", [Stock(), TDRS(), from_settings({"name": "vcd"})], ids=["none", "tdrs", "vcd"])
def test_records_are_in_the_order_of_the_plan(
    mini_llava: Backbone, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of("mini_textvqa", 12, mini_llava)
    benchmark = benchmarks.from_settings({"name": "mini_textvqa", "gap": 3})
    sizes: list[int] = []
    answer = Backbone.answer

    def noted(self: Backbone, some: Any, *asked: Any) -> Any:
        sizes.append(len(some))
        return answer(self, some, *asked)

    monkeypatch.setattr(Backbone, "answer", noted)
    whole = list(run_batches(mini_llava, benchmark, samples, method, 6))
    assert max(sizes) == 6
    longest = int(mini_llava.prompts.tokens(samples)["attention_mask"].sum(dim=1).max())
    rows = 2 if method.second_pass else 1
    sizes.clear()
    parts = list(run_batches(mini_llava, benchmark, samples, method, 6, batch_tokens=3 * rows * longest))
    assert max(sizes) in (3, 4)
    assert [(b.start, [r.id for r in b.records]) for b in parts] == [
        (b.start, [r.id for r in b.records]) for b in whole
    ]
    for one, other in zip(parts, whole, strict=True):
        assert [r.margin for r in one.records] == pytest.approx([r.margin for r in other.records], abs=1e-3)
        assert one.over == other.over
        assert set(one.clamped) == set(other.clamped)


def test_memory_that_runs_out_makes_smaller_parts(mini_llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = samples_of("mini_textvqa", 12, mini_llava)[:8]
    benchmark = benchmarks.from_settings({"name": "mini_textvqa", "gap": 3})
    sizes: list[int] = []
    answer = Backbone.answer

    def limited(self: Backbone, some: Any, *asked: Any) -> Any:
        sizes.append(len(some))
        if len(some) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answer(self, some, *asked)

    monkeypatch.setattr(Backbone, "answer", limited)
    found = list(run_batches(mini_llava, benchmark, samples, Stock(), 8, batch_tokens=10**6))
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert [record.id for record in found[0].records] == [sample.id for sample in samples]
    assert found[0].size == 2


def config_of(*words: str) -> dict[str, Any]:
    return plain(compose("evaluate", ["dataset=mini_textvqa", "split=tuning", "limit=12", "batch_size=4", *words]))


def test_the_key_has_the_budget_only_if_there_is_one() -> None:
    usual, budget = config_of(), config_of("batch_tokens=500")
    earlier = {name: value for name, value in usual.items() if name != "batch_tokens"}
    samples = plan(usual).load()
    keys = [plan(config).cache_key(samples) for config in (earlier, usual, budget, config_of("batch_tokens=501"))]
    assert keys[0] == keys[1]
    assert len(set(keys[1:])) == 3


def test_an_evaluation_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    planned = plan(config_of("batch_tokens=700"))
    samples, key = planned.load(), "0123456789abcdef"
    key = planned.cache_key(samples)
    whole, stopped = Records(tmp_path / "whole"), Records(tmp_path / "stopped")
    model = lambda: backbones.load(planned.backbone)  # noqa: E731
    expected = complete(planned, samples, model, whole, key, lambda _: None)
    assert expected is not None
    assert complete(planned, samples, model, stopped, key, lambda _: None, lambda known: 0.0) is None
    found = complete(planned, samples, model, stopped, key, lambda _: None)
    assert found is not None
    assert found.records == expected.records
    assert [record.id for record in found.records] == [sample.id for sample in samples]
