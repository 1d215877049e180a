"""The common beginning of a batch's prompts is read once, and the answers are those of whole prompts."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from tdrs import DC, RE, TDRS, VAR, Stock, backbones, benchmarks, intervene
from tdrs.attention.method import Method
from tdrs.backbones import Backbone
from tdrs.backbones.prefixes import common
from tdrs.configuration import choice
from tdrs.interventions import METHODS, from_settings
from tdrs.interventions.key_bias import KeyBias

MODELS = ("mini_llava", "mini_internvl", "mini_qwen2_5_vl")
FAR = {"w_min": 0.02, "w_min_as": "absolute"}  # rounding can change |A|_min by tens of per cent
SHARING: dict[str, Method] = {
    "stock": Stock(),
    "tdrs, row": TDRS(stats_scope="row", dc=DC(**FAR), re=RE(**FAR)),
    "tdrs, positions": TDRS(
        stats_scope="row", dc=DC(**FAR), re=RE(**FAR), distance="position", pairs="cross_modal", gain="weights"
    ),
    "tdrs, some": TDRS(stats_scope="row", dc=DC(**FAR), re=RE(**FAR), layers="50%-100%", heads=[1], scale="max"),
    "tdrs, sd": TDRS(dc=None, re=None),
    "vaf": METHODS["vaf"](layers="all"),
    "key_bias": KeyBias(keys="system"),
    "temperature": METHODS["temperature"](),
    "var": VAR(tau=3.0, summ=0.0, rho=1.0, p=0.1),
}
WHOLE: dict[str, Method] = {
    "tdrs, call": TDRS(),
    "pai": from_settings({"name": "pai", "gamma": 1}),
    "middle_layers": METHODS["middle_layers"](),
    "scaling_vis": METHODS["scaling_vis"](),
    "spin": METHODS["spin"](),
    "ad_hh": METHODS["ad_hh"](),
}


@pytest.fixture(scope="module", params=MODELS)
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return backbones.load(backbones.from_settings(choice("backbone", request.param)))


@contextmanager
def shapes(backbone: Backbone) -> Iterator[list[tuple[int, int]]]:
    """Samples and tokens of each forward pass of the decoder."""
    found: list[tuple[int, int]] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        found.append(tuple(kwargs["inputs_embeds"].shape[:2]))

    hook = backbone.model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    yield found
    hook.remove()


def answers(backbone: Backbone, name: str, method: Method, gap: int, place: str) -> tuple[list[Any], list[Any], Any]:
    """Answers to whole prompts, answers with shared beginnings, and the forward passes of the second kind."""
    benchmark = benchmarks.from_settings({"name": name, "gap": gap, "filler": place})
    samples = benchmarks.load(benchmark, "tuning", 24, backbone.settings.prompt_style)[:11]
    found = []
    for share in (False, True):
        with intervene(backbone.model, method) if method.active else nullcontext(), shapes(backbone) as passes:
            found.append(replace(backbone, share_prefixes=share).answer(samples, benchmark.real))
    return found[0], found[1], passes


def check(whole: list[Any], shared: list[Any]) -> None:
    assert [answer.text for answer in shared] == [answer.text for answer in whole]
    assert [answer.margin for answer in shared] == pytest.approx([answer.margin for answer in whole], abs=2e-4)


@pytest.mark.parametrize("method", SHARING)
def test_answers_are_those_of_whole_prompts(backbone: Backbone, method: str) -> None:
    """The text is before the picture, so that in shorter prompts the cut goes through the picture."""
    whole, shared, passes = answers(backbone, "mini_scienceqa", SHARING[method], 40, "before_image")
    check(whole, shared)
    assert [count for count, _ in passes[:2]] == [3, 11]  # 11 questions about 3 pictures
    assert passes[0][1] > 40
    assert passes[1][1] < 60


@pytest.mark.parametrize("name", ["mini_scienceqa", "mini_gqa", "mini_textvqa", "mini_pope"])
def test_every_benchmark_shares(backbone: Backbone, name: str) -> None:
    whole, shared, passes = answers(backbone, name, SHARING["tdrs, positions"], 40, "between")
    check(whole, shared)
    assert passes[0][0] < 11 == passes[1][0]


@pytest.mark.parametrize("method", WHOLE)
def test_an_edit_that_looks_at_the_whole_map_reads_whole_prompts(backbone: Backbone, method: str) -> None:
    whole, shared, passes = answers(backbone, "mini_scienceqa", WHOLE[method], 40, "between")
    assert shared == whole
    assert passes[0][0] == 11


def test_a_method_with_statistics_of_its_own_must_say_that_it_is_row_local() -> None:
    class Mean(Method):
        def statistics(self, call: Any) -> object:
            return call.query.mean()

    assert METHODS["vaf"]().row_local
    assert not Mean().row_local


def test_the_cut_lies_where_all_prompts_of_a_picture_still_agree() -> None:
    """Token 9 is the picture. Prompts about one picture differ in length, so they are left-padded."""
    ids = torch.tensor(
        [
            [1, 9, 9, 2, 3, 4, 5, 6],
            [0, 0, 1, 9, 9, 2, 7, 6],
            [0, 1, 9, 9, 2, 3, 8, 6],
            [0, 0, 0, 1, 9, 9, 5, 6],
        ]
    )
    found = common(ids, (ids > 0).long(), ["a", "a", "a", "b"])
    assert found is not None
    assert found.columns == 4  # prompts 0 and 1 agree in 1 9 9 2
    assert found.first.tolist() == [0, 3]
    assert found.like.tolist() == [0, 0, 0, 1]
    assert found.index.tolist() == [[0, 1, 2, 3], [-1, -1, 0, 1], [-1, 0, 1, 2], [0, 1, 2, 3]]


def test_nothing_is_shared_where_it_saves_too_little() -> None:
    ids = torch.arange(1, 25).view(2, 12)
    mask = torch.ones_like(ids)
    assert common(ids, mask, ["a", "b"]) is None  # nothing in common
    assert common(ids, mask, ["a", "a"]) is None
    ids[1, :2] = ids[0, :2]
    assert common(ids, mask, ["a", "a"]) is None  # 2 tokens of 24
    ids[1, :6] = ids[0, :6]
    found = common(ids, mask, ["a", "a"])
    assert found is not None
    assert found.columns == 6
    ids[1] = ids[0]
    found = common(ids, mask, ["a", "a"])  # the same question twice
    assert found is not None
    assert found.columns == 10
