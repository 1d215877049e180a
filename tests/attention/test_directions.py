"""Kept directions of cached keys: the edit equals one that computes them anew, whatever is done to the cache."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

import tdrs
from tdrs import DC, RE, TDRS, Method, Temperature
from tdrs.attention.call import Call
from tdrs.attention.core import blocked, reference
from tdrs.attention.directions import Directions
from tdrs.attention.in_order import Together
from tdrs.attention.second_pass import SecondPass
from tests.attention.architectures import build
from tests.conftest import tiny_llama
from tests.interventions.calls import make

IDS = torch.randint(3, 50, (3, 37), generator=torch.Generator().manual_seed(2))
PADDED = torch.ones_like(IDS)
PADDED[0, :5] = PADDED[1, :2] = 0
ALIKE = torch.ones_like(IDS)
READ = 30  # tokens of the prompt; the others are decoded
STAGES: dict[str, Any] = {"dc": DC(0.3, 0.7, "absolute"), "re": RE(0.4, 1.3, "absolute")}
POST = TDRS(**STAGES, features="post_rope")  # needs no record of tokens, so the cache may be cropped


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of keys whose directions were computed at once, for each time that they were."""
    found: list[int] = []
    extended = Directions.extended

    def note(self: Directions, keys: torch.Tensor, marks: torch.Tensor) -> Directions:
        found.append(keys.shape[2])
        return extended(self, keys, marks)

    monkeypatch.setattr(Directions, "extended", note)
    return found


class Run:
    """A model that reads IDS in steps; its logits so far."""

    def __init__(self, model: Any, mask: torch.Tensor) -> None:
        self.model, self.mask, self.cache = model, mask, DynamicCache(config=model.config)
        self.outputs: list[torch.Tensor] = []
        self.read(0, READ)

    def read(self, start: int, stop: int, ids: torch.Tensor = IDS) -> None:
        positions = (self.mask.cumsum(-1) - 1).clamp_min(0)[:, start:stop]
        given = {"attention_mask": self.mask[:, :stop], "position_ids": positions, "past_key_values": self.cache}
        out = self.model(ids[: len(self.mask), start:stop], **given, use_cache=True)
        self.outputs.append(out.logits[:, -1])

    def decode(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            self.read(step, step + 1)

    def each_key(self, change: Callable[[torch.Tensor], object]) -> None:
        for layer in self.cache.layers:
            change(layer.keys)


def steps(run: Run) -> None:
    run.decode(READ, 36)


def pieces(run: Run) -> None:
    run.read(READ, READ + 3)
    run.decode(READ + 3, 36)


def mask(run: Run) -> None:
    """A token that was visible is padding from now on, and one that was padding is visible."""
    run.decode(READ, READ + 2)
    run.mask = run.mask.clone()
    run.mask[2, 11] = 0
    run.decode(READ + 2, READ + 4)
    run.mask[0, 4] = 1
    run.decode(READ + 4, 36)


def in_place(run: Run) -> None:
    """One coordinate of one key."""
    run.decode(READ, READ + 2)
    run.each_key(lambda keys: keys[1, 0, 7, 3].add_(0.5))
    run.decode(READ + 2, 36)


def reorder(run: Run) -> None:
    run.decode(READ, READ + 2)
    run.cache.reorder_cache(torch.tensor([1, 0, 0]))
    run.decode(READ + 2, READ + 4)
    run.cache.reorder_cache(torch.tensor([0, 2, 1]))
    run.decode(READ + 4, 36)


def crop(run: Run) -> None:
    """And other tokens take the place of those that were removed."""
    run.decode(READ, READ + 4)
    run.cache.crop(-3)
    run.read(READ + 1, READ + 2, IDS.roll(1, 0))
    run.decode(READ + 2, 36)


def fork(run: Run) -> None:
    """Two continuations take turns."""
    run.decode(READ, READ + 2)
    first, second = run.cache, copy.deepcopy(run.cache)
    for step in range(READ + 2, READ + 5):
        for number, run.cache in enumerate((first, second)):
            run.read(step, step + 1, IDS.roll(number, 0))


def again(run: Run) -> None:
    """A new prompt in the same session, shorter and with fewer samples."""
    run.decode(READ, READ + 3)
    run.mask, run.cache = run.mask[:2], DynamicCache(config=run.model.config)
    run.read(0, 17)
    run.decode(17, 22)


def outside(run: Run) -> None:
    """Inference mode ends."""
    with torch.inference_mode(False), torch.no_grad():
        run.decode(READ, 36)


class Twice(TDRS):
    """Edits both passes, the second one with other settings."""

    @property
    def second_pass(self) -> SecondPass:
        return SecondPass(combine=lambda first, second, step: first, attention=TDRS(**STAGES, scale="one_plus"))


SCRIPTS: dict[str, tuple[Callable[[Run], None], torch.Tensor, Method, int]] = {
    # what is done, the mask, the method, and how often each layer computes the directions of all keys
    "steps": (steps, PADDED, TDRS(**STAGES), 1),
    "steps, post_rope, row": (steps, PADDED, TDRS(**STAGES, features="post_rope", stats_scope="row"), 1),
    "steps, scale=max": (steps, ALIKE, TDRS(**STAGES, scale="max", heads=[1, 2]), 1),
    "steps, decode": (steps, PADDED, TDRS(**STAGES, phase="decode"), 1),
    "steps, distance": (steps, PADDED, TDRS(**STAGES, distance="position", gain="weights"), 1),
    "steps, after another method": (steps, PADDED, Together(methods=(Temperature(), TDRS(**STAGES))), 1),
    "steps, two passes": (steps, PADDED[:2], Twice(**STAGES), 2),
    "pieces": (pieces, PADDED, TDRS(**STAGES, stats_scope="row"), 1),
    "mask": (mask, PADDED, TDRS(**STAGES), 3),
    "in place": (in_place, PADDED, TDRS(**STAGES), 2),
    "reorder": (reorder, ALIKE, TDRS(**STAGES), 3),
    "crop": (crop, PADDED, POST, 2),
    "fork": (fork, ALIKE, POST, 6),
    "again": (again, PADDED, TDRS(**STAGES), 2),
    "outside": (outside, PADDED, TDRS(**STAGES), 1),
}


@contextmanager
def outputs(model: Any, method: Method, execution: str, mask: torch.Tensor) -> Iterator[Run]:
    two = method.second_pass is not None
    with (
        torch.inference_mode(),
        tdrs.intervene(model, method, execution, two_passes=two) as session,
        session.two_passes(1) if two else nullcontext(),
    ):
        yield Run(model, mask)


@pytest.mark.parametrize("name", SCRIPTS)
def test_steps_equal_the_reference(name: str, made: list[int]) -> None:
    script, mask, method, often = SCRIPTS[name]
    found = []
    for execution in ("reference", "blocked"):
        made.clear()
        with outputs(tiny_llama(), method, execution, mask) as run:
            script(run)
        found.append(torch.cat(run.outputs))
        if execution == "reference":
            assert not made
    torch.testing.assert_close(found[1], found[0], atol=3e-4, rtol=1e-4)
    assert found[0].isfinite().all()
    assert sum(count > 5 for count in made) == 2 * often  # two layers


@pytest.mark.parametrize("number", [torch.nan, torch.inf, 1e20])
def test_what_stands_in_padding_of_the_cache_changes_nothing(number: float, made: list[int]) -> None:
    found = []
    for poisoned in (False, True):
        made.clear()
        with outputs(tiny_llama(), TDRS(**STAGES), "blocked", PADDED) as run:
            run.decode(READ, READ + 2)
            for layer in run.cache.layers if poisoned else ():
                layer.keys[0, :, :5] = layer.values[0, :, :5] = number
            run.decode(READ + 2, 36)
        found.append(torch.cat(run.outputs))
    assert torch.equal(found[1], found[0])
    assert found[0].isfinite().all()
    assert sum(count > 5 for count in made) == 2


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 32},
        {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
    ],
    ids=lambda rope: str(rope["rope_type"]),
)
def test_other_rotations(rope: dict[str, Any], made: list[int]) -> None:
    """A dynamic rotation changes its frequencies when the text becomes longer than the model's own length."""
    found = []
    for execution in ("reference", "blocked"):
        model = tiny_llama(rope_parameters=rope, max_position_embeddings=32)
        with outputs(model, TDRS(**STAGES), execution, PADDED) as run:
            steps(run)
        found.append(torch.cat(run.outputs))
    torch.testing.assert_close(found[1], found[0], atol=3e-4, rtol=1e-4)
    assert sum(count > 5 for count in made) == 2


def test_a_sliding_window(made: list[int]) -> None:
    """Its cache drops the oldest keys, so that columns move."""
    torch.manual_seed(0)
    small = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "sliding_window": 9}
    model = MistralForCausalLM(MistralConfig(**small, **heads)).eval()
    found = []
    for execution in ("reference", "blocked"):
        with outputs(model, TDRS(**STAGES), execution, PADDED) as run:
            steps(run)
        assert run.cache.layers[0].keys.shape[2] == 8
        found.append(torch.cat(run.outputs))
    torch.testing.assert_close(found[1], found[0], atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_pictures(name: str, made: list[int]) -> None:
    """Qwen2.5-VL's rotation has three axes."""
    model, inputs = build(name)
    asked = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    asked |= {"output_logits": True, "return_dict_in_generate": True}
    found = []
    for execution in ("reference", "blocked"):
        with tdrs.intervene(model, TDRS(**STAGES, stats_scope="row"), execution):
            found.append(torch.cat(model.generate(**inputs, **asked).logits))
    torch.testing.assert_close(found[1], found[0], atol=5e-4, rtol=1e-3)
    assert sorted(made) == [1] * 10 + [34] * 2


@torch.no_grad()
def test_beams(made: list[int]) -> None:
    """Beams are copies of each other at first, and reordered at each step."""
    found = []
    asked = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    for execution in ("reference", "blocked"):
        model = tiny_llama()
        with tdrs.intervene(model, TDRS(**STAGES), execution):
            out = model.generate(IDS[:1, :21], **asked, output_scores=True, return_dict_in_generate=True)
        found.append(out.sequences_scores)
    torch.testing.assert_close(found[1], found[0], atol=3e-4, rtol=1e-4)


def test_directions_that_a_gradient_flows_through_are_not_kept() -> None:
    found = []
    for execution in ("reference", "blocked"):
        model = tiny_llama()
        with tdrs.intervene(model, TDRS(**STAGES), execution) as session:
            out = model(IDS[:, :20], use_cache=True)
            out = model(IDS[:, 20:21], past_key_values=out.past_key_values)
        assert not any(session.context.directions.values())
        found.append(out.logits)
    torch.testing.assert_close(found[1], found[0], atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [63, 65, 129])
@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_calls_of_odd_sizes(length: int, padding: str | None) -> None:
    """Calls that add one row each, to more keys than memory was reserved for; padding holds NaN."""
    clean, whole = make(length, padding=padding).call, make(length, padding=padding).call
    padded = slice(0, length // 3) if padding == "left" else slice(length - length // 3, length)
    for vectors in (whole.key, whole.value) if padding else ():
        vectors[0, :, padded] = torch.nan
    kept: dict[str, Directions] = {}
    method = TDRS(**STAGES)
    for stop in (length // 3 + 2, *range(length // 3 + 3, length + 1)):
        rows = slice(stop - 1, stop) if kept else slice(0, stop)
        call = _part(whole, rows, stop)
        call.directions = kept
        expected = reference(_part(clean, rows, stop), method)
        torch.testing.assert_close(blocked(call, method), expected, atol=2e-5, rtol=1e-4)
    anew = _part(whole, rows, length)
    blocked(anew, method)
    for name in ("vectors", "marks", "total"):
        torch.testing.assert_close(getattr(kept["pre_rope"], name), getattr(anew.directions["pre_rope"], name))


def _part(call: Call, rows: slice, stop: int) -> Call:
    """Query rows of a call, and its first `stop` keys."""
    assert call.rotation is not None
    assert call.positions is not None
    cos, sin = (part[:, :stop] for part in call.rotation)
    mask = None if call.mask is None else call.mask[:, :, rows, :stop]
    return replace(
        call,
        query=call.query[:, :, rows],
        key=call.key[:, :, :stop],
        value=call.value[:, :, :stop],
        mask=mask,
        rotation=(cos, sin),
        positions=call.positions[:, :stop],
        directions={},
    )
