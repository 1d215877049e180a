"""Methods that take logits from other positions: the rotation itself, numbers by hand, and what they keep."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tdrs import TDRS
from tdrs.attention.block import IMAGE, TEXT, Block
from tdrs.attention.call import Call
from tdrs.attention.core import blocked, reference
from tdrs.attention.in_order import Together
from tdrs.attention.rope import LAYOUTS, Frequencies, find_frequencies, follows, rotate, unrotate
from tdrs.attention.turned import turn
from tdrs.interventions.cca import CCA
from tdrs.interventions.ms_poe import MsPoE
from tdrs.interventions.ntk import NTK
from tdrs.interventions.position_interpolation import PositionInterpolation
from tdrs.interventions.positions import own
from tdrs.interventions.self_extend import SelfExtend
from tdrs.settings import SettingError
from tests.interventions.calls import HEADS, deviation, each_padding, make

METHODS = {
    "self_extend": SelfExtend(group=3, window=4),
    "position_interpolation": PositionInterpolation(),
    "ntk": NTK(),
    "ms_poe": MsPoE(r_max=4.0, threshold=1.5),
}


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_the_models_own_positions_give_its_logits(softcap: float | None) -> None:
    for sample in each_padding(19):
        call = replace(sample.one_axis.call, softcap=softcap, block_elements=97)
        turned = turn(call, own(call))
        for block in call.blocks():
            visible = ~block.hidden.expand(block.logits.shape)
            torch.testing.assert_close(turned.logits(block)[visible], block.logits[visible], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_one_axis(name: str) -> None:
    for sample in each_padding(17):
        assert deviation(name, METHODS[name], sample.one_axis) < 2e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [16, 8])
def test_rotating_again_undoes_the_undoing(layout: str, width: int) -> None:
    """All layouts, also where a part of a head is rotated, with a factor of cos and sin."""
    x = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(0))
    angles = torch.arange(5)[:, None] * torch.linspace(1, 0.1, width // 2)
    stored = angles.repeat_interleave(2, -1) if layout == "pairs" else torch.cat((angles, angles), -1)
    cos, sin = stored.cos()[None] * 1.3, stored.sin()[None] * 1.3
    again = rotate(unrotate(x, cos, sin, layout), angles[None, None], 1.3, layout)
    torch.testing.assert_close(again, x)
    if layout != "none":
        assert torch.equal(again[..., width:], x[..., width:])
        assert not torch.allclose(unrotate(x, cos, sin, layout)[..., :width], x[..., :width])


def test_frequencies_are_found_by_trial() -> None:
    turns = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.2, 0.01]])

    def embed(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = (positions @ turns).repeat(1, 1, 2)
        return angles.cos() * 1.5, angles.sin() * 1.5

    positions = torch.randint(0, 50, (2, 7, 2)).float()
    found = find_frequencies(embed, positions)
    torch.testing.assert_close(found.turns, turns)
    assert found.scaling == pytest.approx(1.5)
    assert follows(found, positions, embed(positions)[0])
    assert not follows(found, positions * 1.1 + 1, embed(positions)[0])


def by_hand(q0: list[float], positions: list[int], **given: Any) -> Call:
    """One head of two coordinates; keys are (1, 0) and turn by 0.1 a position."""
    ids = torch.tensor(positions)
    cos, sin = ((ids[None, :, None] * 0.1).expand(-1, -1, 2) for _ in range(2))
    cos, sin = cos.cos(), sin.sin()
    vectors = torch.tensor([1.0, 0.0]).expand(1, 1, len(positions), 2)
    key = rotate(vectors, ids[None, None, :, None] * 0.1)
    query = rotate(torch.tensor(q0).expand(1, 1, len(positions), 2), ids[None, None, :, None] * 0.1)
    frequencies = Frequencies(torch.tensor([[0.1]]), 1.0)
    return Call(query, key, key, 1.0, None, (cos, sin), ids[None, :, None], frequencies=frequencies, **given)


@pytest.mark.parametrize(
    ("method", "distances"),
    [
        # the last of 8 tokens: 7 − j
        (PositionInterpolation(factor=2.0), [3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5, 0.0]),
        # d ≥ 3 at ⌊7/2⌋ + 3 − ⌊3/2⌋ = 5 less ⌊j/2⌋
        (SelfExtend(group=2, window=3), [5, 5, 4, 4, 3, 2, 1, 0]),
        # the same with 3 − 3/2
        (SelfExtend(group=2, window=3, shift="exact"), [4.5, 4.5, 3.5, 3.5, 2.5, 2, 1, 0]),
        (NTK(alpha=8.0), [7, 6, 5, 4, 3, 2, 1, 0]),  # one pair alone is the fastest, which stays
        (MsPoE(r_min=2.0, r_max=2.0), [3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5, 0.0]),
    ],
)
def test_by_hand(method: Any, distances: list[float]) -> None:
    call = by_hand([1.0, 0.0], list(range(8)))
    logits = method.edit(Block(call, 0, 8, 8), method.statistics(call))[0, 0, 7]
    torch.testing.assert_close(logits, torch.tensor([math.cos(0.1 * d) for d in distances]), atol=1e-6, rtol=0)


def test_ntk_by_hand() -> None:
    """Three pairs, α = 4: D − 2 = 4, so 4^0, 4^(−2/4), 4^(−4/4). It is the rotation of the larger base."""
    call = replace(make(5).one_axis.call, frequencies=Frequencies(torch.tensor([[1.0, 0.5, 0.25]]), 1.0))
    turns = NTK(alpha=4.0).statistics(call).frequencies.turns
    torch.testing.assert_close(turns, torch.tensor([[1.0, 0.25, 0.0625]]))
    sample = make(5).one_axis.call
    base = 10_000 * 8 ** (16 / 14)
    torch.testing.assert_close(
        NTK().statistics(sample).frequencies.turns[0], 1.0 / base ** (torch.arange(0, 16, 2) / 16)
    )


@pytest.mark.parametrize(
    ("form", "image", "after"),
    [
        ("rings", [0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0], 2),  # 4 × 4: CCA's text follows at H // 2
        ("folded", [0, 1, 1, 0, 1, 2, 2, 1, 1, 2, 2, 1, 0, 1, 1, 0], 3),  # and MCA's at H − 1
    ],
)
def test_image_positions_by_hand(form: str, image: list[int], after: int) -> None:
    roles = torch.full((1, 21), TEXT)
    roles[0, 2:18] = IMAGE
    call = by_hand([1.0, 0.0], list(range(21)), roles=roles)
    found = CCA(form=form)._positions(replace(call, tile_side=4))[0, 0, :, 0]
    assert found.tolist() == [0, 1, *(2 + n for n in image), *(2 + after + n for n in range(3))]
    axes = torch.arange(21)[:, None].repeat(1, 3)
    cells = torch.arange(16)
    axes[2:18] = 2 + torch.stack((torch.zeros(16), cells // 4, cells % 4), dim=1).long()
    axes[18:] = 6 + torch.arange(3)[:, None]
    same = CCA(form=form)._positions(replace(call, positions=axes[None]))[0, 0]
    assert torch.equal(same, found[:, None].expand(-1, 3))


@pytest.mark.parametrize(("side", "known"), [(2, None), (None, 2), (2, 2)])
def test_tiles_and_two_pictures(side: int | None, known: int | None) -> None:
    """Four tiles of 2 × 2 tokens are no square of 4 × 4."""
    roles = torch.tensor([[TEXT, *[IMAGE] * 16, TEXT, *[IMAGE] * 4, TEXT]])
    call = by_hand([1.0, 0.0], list(range(23)), roles=roles, tile_side=known)
    found = CCA(side=side)._positions(call)[0, 0, :, 0].tolist()
    assert found == [0, *[1] * 4, *[2] * 4, *[3] * 4, *[4] * 4, 5, *[6] * 4, 7]


@pytest.mark.parametrize(
    ("side", "known", "says"),
    [
        (None, None, "side = None: must be given"),
        (None, 0, "side = None: no side fits"),
        (2, 0, "side = 2: no side fits"),
        (2, 4, "side = 2: must be 4 in this model"),
        (3, None, "an image of 16 tokens has no such squares"),
        (None, 8, "an image of 16 tokens has no such squares"),
    ],
)
def test_a_side_that_is_unknown_or_does_not_fit_is_refused(side: int | None, known: int | None, says: str) -> None:
    roles = torch.tensor([[TEXT, *[IMAGE] * 16, TEXT]])
    with pytest.raises(SettingError, match=says):
        blocked(by_hand([1.0, 0.0], list(range(18)), roles=roles, tile_side=known), CCA(side=side))


def test_ranks_are_those_of_the_first_call() -> None:
    """Heads keep their ratios while an answer is decoded, whatever the later tokens are."""
    method = MsPoE(r_max=4.0, threshold=1.5)
    prompt = make(21).call
    kept: dict[Any, Any] = {}
    before = method._numbers(prompt)
    assert sorted(before[0].tolist()) == list(range(HEADS))
    blocked(replace(prompt, kept=kept), method)
    step = make(1, past=21, seed=3).call
    assert not torch.equal(method._numbers(step), before)
    turned = method.statistics(replace(step, kept=kept))
    ratios = 1.2 + 2.8 * before / (HEADS - 1)
    assert step.positions is not None
    torch.testing.assert_close(turned.queries[:, :, -1, 0], step.positions[:, -1:, 0] / ratios)


@pytest.mark.parametrize("ranking", ["rank", "code", "none"])
def test_ratios_by_hand(ranking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares .1, .4, .2, .3: ranks 3, 0, 2, 1; the code takes the order 1, 3, 2, 0."""
    monkeypatch.setattr(MsPoE, "shares", lambda self, call: torch.tensor([[0.1, 0.4, 0.2, 0.3]] * 2))
    call = make(6).one_axis.call
    found = MsPoE(r_min=1.2, r_max=1.8, ranking=ranking).statistics(call).queries[0, :, 5, 0]
    ratios = {"rank": [1.8, 1.2, 1.6, 1.4], "code": [1.35, 1.65, 1.5, 1.2], "none": [1.2, 1.4, 1.6, 1.8]}[ranking]
    torch.testing.assert_close(found, 5 / torch.tensor(ratios))


@pytest.mark.parametrize("name", METHODS)
def test_padding_is_never_read(name: str) -> None:
    """NaN in keys of padding changes nothing."""
    call = make(20, padding="left").one_axis.call
    poisoned = replace(call, key=call.key.clone(), kept={})
    poisoned.key[0, :, :6] = torch.nan
    for size in (None, 97):
        before = reference if size is None else blocked
        clean, other = (before(replace(c, block_elements=size, kept={}), METHODS[name]) for c in (call, poisoned))
        assert torch.equal(clean[:, :, 6:], other[:, :, 6:])


def test_it_comes_first_of_several_methods() -> None:
    Together(methods=(NTK(), TDRS()))
    with pytest.raises(SettingError, match="must be the first of several methods"):
        Together(methods=(TDRS(), NTK()))


def test_what_a_row_depends_on() -> None:
    assert SelfExtend().row_local
    assert not CCA().row_local
    assert not MsPoE().row_local
    assert MsPoE(ranking="none").row_local
