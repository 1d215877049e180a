"""The three architectures at small width with random weights: stock when off, the tower untouched, rotation undone."""

from typing import Any

import pytest
import torch

import tdrs
from tdrs import DC, RE, TDRS, VAR
from tdrs.attention import core
from tdrs.attention.block import IMAGE, SYSTEM, TEXT, Block
from tdrs.attention.call import Call
from tdrs.attention.session import Session
from tdrs.attention.turned import turn
from tdrs.interventions import METHODS
from tdrs.interventions.positions import own
from tests.attention.architectures import ARCHITECTURES, TOKENS, build
from tests.interventions.calls import edits

STAGES: dict[str, Any] = {"dc": DC(0.3, 0.7, "absolute"), "re": RE(0.4, 1.3, "absolute")}


@pytest.fixture(params=ARCHITECTURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.no_grad()
def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**inputs).logits[inputs["attention_mask"].bool()]


# a τ that some image tokens of these small random models reach, and others do not
SINKS = VAR(tau=2.2, summ=0.0, rho=1.0, p=0.0, layers="all")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_off_is_stock_bit_for_bit_and_on_is_not(name: str, attention: str) -> None:
    model, inputs = build(name)
    model.set_attn_implementation(attention)
    stock = logits(model, inputs)
    assert stock.isfinite().all()
    for method in (METHODS["none"](), TDRS(sd=False, dc=None, re=None)):
        with tdrs.intervene(model, method):
            assert torch.equal(logits(model, inputs), stock)
    for method_name, method in {**edits(), "var": SINKS}.items():
        with tdrs.intervene(model, method):
            edited = logits(model, inputs)
        assert edited.isfinite().all()
        assert not torch.allclose(edited, stock, atol=1e-4), method_name
    assert torch.equal(logits(model, inputs), stock)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", [METHODS["none"](), TDRS(**STAGES), TDRS(**STAGES, layers=[0]), tdrs.PAI(gamma=1)])
@torch.no_grad()
def test_the_next_token_needs_one_row_of_the_last_layer(name: str, attention: str, method: Any) -> None:
    """Its logits, and those of later decoded tokens, are as if all rows were computed; other logits are not."""
    model, inputs = build(name)
    model.set_attn_implementation(attention)
    asked = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    asked |= {"output_logits": True, "return_dict_in_generate": True}
    with tdrs.intervene(model, method) as session:
        whole, said = model(**inputs).logits, model.generate(**inputs, **asked)
        with session.next_token_only():
            last, last_said = model(**inputs).logits, model.generate(**inputs, **asked)
        assert torch.equal(model(**inputs).logits, whole)
    torch.testing.assert_close(last[:, -1], whole[:, -1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(last[:, :-1], whole[:, :-1], atol=1e-2)
    torch.testing.assert_close(last_said.logits, said.logits, atol=1e-4, rtol=1e-4)


def test_the_vision_tower_is_never_touched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is given the same image features bit for bit, and only its layers reach the session."""
    model, inputs = build(name)
    reached: list[Any] = []
    attend = Session.attend

    def record(self: Session, module: Any, *args: Any, **kwargs: Any) -> Any:
        reached.append(module)
        return attend(self, module, *args, **kwargs)

    monkeypatch.setattr(Session, "attend", record)
    seen: list[torch.Tensor] = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    logits(model, inputs)
    assert reached == []
    with tdrs.intervene(model, TDRS(**STAGES)):
        logits(model, inputs)
    assert torch.equal(seen[0], seen[1])
    # A layer is first tried with known angles, so it may come more than once.
    assert list(dict.fromkeys(reached)) == [layer.self_attn for layer in model.get_decoder().layers]
    assert any("Attention" in type(m).__name__ for m in model.modules() if m not in set(reached))


@torch.no_grad()
def test_vectors_before_rotation_are_recovered(name: str, calls: list[Call]) -> None:
    """Against the projections' own outputs, the cache's past included; Qwen2.5-VL's rotation has three axes."""
    model, inputs = build(name)
    projected: dict[str, list[torch.Tensor]] = {"q": [], "k": []}
    attention = model.get_decoder().layers[1].self_attn
    with tdrs.intervene(model, TDRS(layers=[1])):
        model(**inputs)  # the layout of the rotation is found by trial, once
    calls.clear()
    for part, outputs in projected.items():
        getattr(attention, f"{part}_proj").register_forward_hook(lambda m, a, out, outputs=outputs: outputs.append(out))
    with tdrs.intervene(model, TDRS(layers=[1])):
        model.generate(**inputs, max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert [call.query.shape[2] for call in calls] == [34, 1, 1]
    for step, call in enumerate(calls):
        rows, keys = call.query.shape[2], call.key.shape[2]
        query = projected["q"][step].view(2, rows, 4, 8).transpose(1, 2)
        key = torch.cat(projected["k"][: step + 1], dim=1).view(2, keys, 2, 8).transpose(1, 2)
        torch.testing.assert_close(Block(call, 0, rows, keys).unrotated_query, query, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(call.unrotated_key, key, atol=1e-5, rtol=1e-5)


def test_the_models_own_positions_give_its_logits(name: str, calls: list[Call]) -> None:
    """The frequencies of the model's own rotary module, with three axes for Qwen2.5-VL, the cache's past included."""
    model, inputs = build(name)
    with tdrs.intervene(model, tdrs.NTK()):
        model.generate(**inputs, max_new_tokens=2, do_sample=False, eos_token_id=-1, pad_token_id=0)
    for call in (calls[0], calls[-1]):
        block = next(call.blocks())
        found = turn(call, own(call)).logits(block)
        visible = ~block.hidden.expand(found.shape)
        torch.testing.assert_close(found[visible], block.logits[visible], atol=1e-4, rtol=1e-4)


def test_positions_and_roles(name: str, calls: list[Call]) -> None:
    """The model's own position ids, with three axes for Qwen2.5-VL, and the roles of prompt and answer."""
    model, inputs = build(name)
    with tdrs.intervene(model, TDRS(**STAGES, distance="position", pairs="text_to_image", layers=[0])):
        model.generate(**inputs, max_new_tokens=2, do_sample=False, eos_token_id=-1, pad_token_id=0)
    call = calls[-1]
    assert call.positions is not None
    assert call.roles is not None
    assert call.roles[1].tolist() == [SYSTEM] * 3 + [IMAGE] * TOKENS + [TEXT] * 16
    positions = call.positions[-1]
    if name == "qwen2_5_vl":
        # text counts on all axes; a 4 × 4 image starts at 3, stands still in time, counts rows and columns
        assert positions[:3].tolist() == [[n] * 3 for n in range(3)]
        assert positions[3:19].tolist() == [[3, 3 + n // 4, 3 + n % 4] for n in range(16)]
        assert positions[19:].tolist() == [[7 + n] * 3 for n in range(16)]
        block = Block(call, 0, 1, 35)
        assert block.distance("position")[1, 0, 0, 3:19].tolist() == [19.0] * 16
    else:
        assert positions[:, 0].tolist() == list(range(35))


@pytest.mark.parametrize("distance", ["index", "position"])
def test_blocked_equals_reference(name: str, distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(core.BLOCK_ELEMENTS, "cpu", (301, 301))
    model, inputs = build(name)
    outputs = []
    for execution in ("reference", "blocked"):
        with tdrs.intervene(model, TDRS(**STAGES, distance=distance), execution):
            outputs.append(logits(model, inputs))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("distance", ["index", "position"])
def test_a_sample_does_not_depend_on_its_neighbour(name: str, distance: str) -> None:
    model, inputs = build(name)
    alone = {key: x[:1] for key, x in inputs.items()}
    if name == "qwen2_5_vl":
        alone["pixel_values"] = inputs["pixel_values"][:64]
    with tdrs.intervene(model, TDRS(**STAGES, distance=distance)):
        batch, single = logits(model, inputs), logits(model, alone)
    torch.testing.assert_close(batch[: len(single)], single, atol=1e-3, rtol=1e-3)
