"""`intervene` on whole models: stock when off, restored after, padding, cache, other architectures, refusals."""

import copy
import sys
from typing import Any

import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    StaticCache,
)
from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel

import tdrs
from tdrs import DC, RE, TDRS
from tdrs.attention import core
from tdrs.attention.block import IMAGE, SYSTEM, TEXT, Block
from tdrs.attention.call import Call
from tdrs.attention.intervene import _SESSIONS
from tdrs.attention.turned import turn
from tdrs.backbones import Backbone
from tdrs.interventions import METHODS
from tdrs.interventions.pai import PAI
from tdrs.interventions.positions import own
from tdrs.settings import SettingError
from tests.conftest import tiny_llama
from tests.interventions.calls import edits

IDS = torch.randint(3, 50, (2, 37), generator=torch.Generator().manual_seed(1))
# w_min is absolute: |A|_min is near rounding, so a multiple of it differs by more than 1e-4 between two orders of sums
STAGES = {"dc": DC(0.3, 0.7, "absolute"), "re": RE(0.4, 1.3, "absolute")}
STRONG = TDRS(**STAGES)
OFF = TDRS(sd=False, dc=None, re=None)


@pytest.fixture(params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    made = tiny_llama()
    made.set_attn_implementation(request.param)
    return made


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS, **inputs: Any) -> torch.Tensor:
    return model(ids, **inputs).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("padded", [False, True])
def test_all_off_is_stock_bit_for_bit(model: LlamaForCausalLM, padded: bool) -> None:
    mask = torch.ones_like(IDS)
    if padded:
        mask[0, :9] = 0
    stock = logits(model, attention_mask=mask)
    with tdrs.intervene(model, OFF):
        assert torch.equal(logits(model, attention_mask=mask), stock)
    with tdrs.intervene(model, STRONG):
        assert not torch.equal(logits(model, attention_mask=mask), stock)
    assert torch.equal(logits(model, attention_mask=mask), stock)


def test_inactive_layers_run_the_stock_attention(model: LlamaForCausalLM) -> None:
    """A layer's input does not depend on later layers: with layer 1 edited, layer 1's input is stock's bit for bit."""
    stock = model(IDS, output_hidden_states=True).hidden_states
    with tdrs.intervene(model, TDRS(layers=[1])):
        edited = model(IDS, output_hidden_states=True).hidden_states
    assert torch.equal(stock[1], edited[1])
    assert not torch.equal(stock[2], edited[2])


def test_the_model_is_restored_after_an_exception(model: LlamaForCausalLM) -> None:
    before = copy.deepcopy(model.config.to_dict())
    implementation = model.config._attn_implementation
    stock = logits(model)

    def fail() -> None:
        with tdrs.intervene(model, STRONG):
            logits(model)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert model.config._attn_implementation == implementation
    assert model.config.to_dict() == before
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(module in _SESSIONS for module in model.modules())
    assert torch.equal(logits(model), stock)


def test_blocked_equals_reference(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(core.BLOCK_ELEMENTS, "cpu", (301, 301))
    mask = torch.ones_like(IDS)
    mask[1, :14] = 0
    outputs = {}
    for execution in ("reference", "blocked"):
        with tdrs.intervene(model, STRONG, execution):
            outputs[execution] = logits(model, attention_mask=mask)
    torch.testing.assert_close(outputs["blocked"][0], outputs["reference"][0], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(outputs["blocked"][1, 14:], outputs["reference"][1, 14:], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("features", ["pre_rope", "post_rope"])
def test_cached_decoding_equals_the_full_pass_under_row_statistics(llama: LlamaForCausalLM, features: str) -> None:
    """Also shows that past keys are un-rotated with their own positions."""
    method = TDRS(**STAGES, stats_scope="row", features=features, distance="position")
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with tdrs.intervene(llama, method), torch.no_grad():
        full = logits(llama, attention_mask=mask, position_ids=positions)
        out = llama(IDS[:, :30], attention_mask=mask[:, :30], position_ids=positions[:, :30], use_cache=True)
        steps = [out.logits]
        for t in range(30, 37):
            out = llama(
                IDS[:, t : t + 1],
                attention_mask=mask[:, : t + 1],
                position_ids=positions[:, t : t + 1],
                past_key_values=out.past_key_values,
            )
            steps.append(out.logits)
    cached = torch.cat(steps, dim=1)
    torch.testing.assert_close(cached[0, 5:], full[0, 5:], atol=3e-4, rtol=1e-4)
    torch.testing.assert_close(cached[1], full[1], atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("scope", ["call", "row"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_sample_does_not_depend_on_its_padding(llama: LlamaForCausalLM, scope: str, side: str) -> None:
    method = TDRS(**STAGES, stats_scope=scope)
    alone = IDS[:1, :25]
    mask = torch.ones_like(IDS)
    both = IDS.clone()
    where = slice(12, 37) if side == "left" else slice(0, 25)
    mask[0] = 0
    mask[0, where] = 1
    both[0, where] = alone[0]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with tdrs.intervene(llama, method):
        single = logits(llama, alone)
        batched = logits(llama, both, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(batched[:1, where], single, atol=3e-4, rtol=1e-4)


def test_generate_runs_inside(mini_llava: Backbone) -> None:
    """The README's example, on the embedded model, left-padded."""
    from tdrs import benchmarks

    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_scienceqa", "gap": 20}), "tuning", 8)
    inputs = mini_llava.inputs(samples)
    assert (inputs["attention_mask"] == 0).any()
    method = tdrs.TDRS(sd=True, dc=tdrs.DC(w_min=3.0, weight=1.0), re=tdrs.RE(w_min=2.0, weight=0.8), gain="logits")
    stock = mini_llava.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with tdrs.intervene(mini_llava.model, method):
        edited = mini_llava.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert edited.shape[0] == stock.shape[0] == 8
    assert torch.equal(mini_llava.model.generate(**inputs, max_new_tokens=4, do_sample=False), stock)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10_000.0},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "rope_theta": 10_000.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_vectors_before_rotation_are_recovered(rope: dict[str, Any], calls: list[Call]) -> None:
    """Against the projections' own outputs, past keys in the cache included."""
    model = tiny_llama(rope_parameters=rope)
    projected: dict[str, list[torch.Tensor]] = {"q": [], "k": []}
    attention = model.model.layers[1].self_attn
    with tdrs.intervene(model, TDRS(layers=[1])):
        model(IDS)  # the layout of the rotation is found by trial, once
    calls.clear()
    for name in projected:
        getattr(attention, f"{name}_proj").register_forward_hook(
            lambda m, a, out, name=name: projected[name].append(out)
        )
    with tdrs.intervene(model, TDRS(layers=[1])), torch.no_grad():
        out = model(IDS[:, :36], use_cache=True)
        model(IDS[:, 36:], past_key_values=out.past_key_values)
    k, q = calls[1].unrotated_key, Block(calls[1], 0, 1, 37).unrotated_query
    shape = (2, 37, 2, 16)
    torch.testing.assert_close(k, torch.cat(projected["k"], dim=1).view(shape).transpose(1, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(q, projected["q"][1].view(2, 1, 4, 16).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_the_factor_of_a_rotation_is_kept_at_other_positions(calls: list[Call]) -> None:
    """YaRN scales cos and sin."""
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 32}
    model = tiny_llama(rope_parameters=rope)
    with tdrs.intervene(model, tdrs.NTK()), torch.no_grad():
        model(IDS)
    call = calls[0]
    assert call.frequencies is not None
    assert call.frequencies.scaling > 1.1
    block = next(call.blocks())
    torch.testing.assert_close(turn(call, own(call)).logits(block), block.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "rope", [{"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}], ids=lambda rope: str(rope["rope_type"])
)
def test_a_rotation_that_changes_with_the_length_has_no_other_positions(rope: dict[str, Any]) -> None:
    model = tiny_llama(rope_parameters=rope)
    with (
        tdrs.intervene(model, tdrs.NTK()),
        pytest.raises(ValueError, match=r"its frequencies \(dynamic\) change with the length of the prompt"),
    ):
        model(IDS)


@pytest.mark.parametrize("phase", ["prefill", "decode", "both"])
def test_phase(llama: LlamaForCausalLM, phase: str, calls: list[Call]) -> None:
    """Which calls reach the core; on all others the model's own attention runs."""
    with tdrs.intervene(llama, TDRS(phase=phase, stats_scope="row")), torch.no_grad():
        out = llama(IDS[:, :20], use_cache=True)
        out = llama(IDS[:, 20:30], past_key_values=out.past_key_values)
        llama(IDS[:, 30:31], past_key_values=out.past_key_values)
    rows = [call.query.shape[2] for call in calls]
    prefill, decode = [20, 20, 10, 10], [1, 1]
    assert rows == {"prefill": prefill, "decode": decode, "both": prefill + decode}[phase]


def test_layers_and_heads_reach_the_core(llama: LlamaForCausalLM, calls: list[Call]) -> None:
    stock = logits(llama)
    with tdrs.intervene(llama, TDRS(layers="50%-100%", heads=[1, 3])):
        assert not torch.equal(logits(llama), stock)
    assert [call.layer for call in calls] == [1]
    assert calls[0].heads is not None
    assert calls[0].heads.flatten().tolist() == [False, True, False, True]


def test_heads_that_are_not_chosen_keep_their_output(llama: LlamaForCausalLM) -> None:
    outputs = []
    projection = llama.model.layers[0].self_attn.o_proj
    projection.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    logits(llama)
    with tdrs.intervene(llama, TDRS(heads=[2])):
        logits(llama)
    stock, edited = (outputs[number].view(2, 37, 4, 16) for number in (0, -1))  # others find the rotation's layout
    torch.testing.assert_close(edited[:, :, [0, 1, 3]], stock[:, :, [0, 1, 3]], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(edited[:, :, 2], stock[:, :, 2], atol=1e-3)


def test_half_precision_models_run() -> None:
    model = tiny_llama().to(torch.bfloat16)
    with tdrs.intervene(model, STRONG):
        out = logits(model)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


def test_another_architecture() -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = Qwen2ForCausalLM(config).eval()
    stock = logits(model)
    with tdrs.intervene(model, STRONG):
        assert not torch.equal(logits(model), stock)


def test_refusals_leave_the_model_as_it_was(llama: LlamaForCausalLM) -> None:
    with (
        pytest.raises(SettingError, match="execution = 'fast': must be one of auto, blocked, reference, triton"),
        tdrs.intervene(llama, STRONG, "fast"),
    ):
        pass
    for values, named in (
        ({"layers": [0, 7]}, r"layers = \[0, 7\]: must be from 0 to 1"),
        ({"layers": "1-2"}, "layers = '1-2': must be from 0 to 1"),
        ({"heads": [4]}, r"heads = \[4\]: must be from 0 to 3"),
    ):
        with pytest.raises(SettingError, match=named), tdrs.intervene(llama, TDRS(**values)):
            pass
    with pytest.raises(ValueError, match="no image_token_id"), tdrs.intervene(llama, PAI(gamma=1)):
        pass
    with (
        tdrs.intervene(llama, STRONG),
        pytest.raises(ValueError, match="another intervene"),
        tdrs.intervene(llama, STRONG),
    ):
        pass
    assert llama.config._attn_implementation == "sdpa"
    small = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    hybrid = Qwen3NextForCausalLM(
        Qwen3NextConfig(**small, num_key_value_heads=1, head_dim=16, num_experts=2, layer_types=["linear_attention"])
    )
    with (
        pytest.raises(SettingError, match=r"model = 'Qwen3Next.*(AttentionInterface|self_attn)"),
        tdrs.intervene(hybrid, STRONG),
    ):
        pass
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50))
    with pytest.raises(ValueError, match=r"AttentionInterface|self_attn"), tdrs.intervene(gpt2, STRONG):
        pass


def test_foreign_and_fixed_size_caches_are_refused(llama: LlamaForCausalLM) -> None:
    out = llama(IDS[:, :20], use_cache=True)
    with tdrs.intervene(llama, STRONG), pytest.raises(ValueError, match="holds 20 tokens, but only 0 passed"):
        llama(IDS[:, 20:21], past_key_values=out.past_key_values)
    with tdrs.intervene(llama, STRONG):
        out = llama(IDS[:, :20], use_cache=True)
        out.past_key_values.crop(-9)
        with pytest.raises(ValueError, match="do not crop"):
            llama(IDS[:, 20:21], past_key_values=out.past_key_values)
    with tdrs.intervene(llama, STRONG), pytest.raises(ValueError, match="StaticCache"):
        llama(IDS, past_key_values=StaticCache(config=llama.config, max_cache_len=64))


def test_a_reordered_cache_is_refused_where_samples_differ(llama: LlamaForCausalLM) -> None:
    mask = torch.ones(2, 20, dtype=torch.long)
    order = torch.tensor([1, 0])
    for padding in (0, 5):
        mask[0, :padding] = 0
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        with tdrs.intervene(llama, STRONG), torch.no_grad():
            out = llama(IDS[:, :20], attention_mask=mask, position_ids=positions, use_cache=True)
            out.past_key_values.reorder_cache(order)
            inputs = {"attention_mask": torch.ones(2, 21), "past_key_values": out.past_key_values}
            if padding:
                with pytest.raises(ValueError, match="reordered or copied"):
                    llama(IDS[order, 20:21], **inputs)
            else:
                llama(IDS[order, 20:21], **inputs)


def test_layers_that_are_not_given_the_rotation_are_refused(
    llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On entering, if the signature shows it; at the first call, if the rotation is None."""
    monkeypatch.setattr(type(llama.model.layers[0].self_attn), "forward", lambda self, hidden_states, **kwargs: None)
    with pytest.raises(ValueError, match="not given position_embeddings"), tdrs.intervene(llama, STRONG):
        pass
    monkeypatch.undo()
    with tdrs.intervene(llama, STRONG) as session:
        session.context.enter_decoder(llama.model, (), {"input_ids": IDS})
        with pytest.raises(ValueError, match="not given position_embeddings"):
            llama.model.layers[0].self_attn(torch.zeros(2, 37, 32), position_embeddings=None)


@pytest.mark.parametrize("name", [*edits(), "none"])
def test_every_method_decodes_from_a_cache_as_in_the_full_pass(mini_llava: Backbone, name: str) -> None:
    """Pointwise methods and row statistics edit a row alike, whether its past is in the cache or in the call."""
    from tdrs import benchmarks

    settings: dict[str, Any] = {
        "tdrs": {**STAGES, "stats_scope": "row", "pairs": "text_to_image"},
        "ms_poe": {"ranking": "none"},  # ranks are those of the first call
        "scaling_vis": {"layers": [3], "phase": "both"},
        "cca": {"side": 4},
        "var": {"tau": 3.0, "summ": 0.0, "rho": 1.0, "p": 0.1},
        "ad_hh": {"layers": [3]},
        "spin": {"layers": [3]},
        "pai": {"gamma": 1, "layers": [3]},  # these edit the last row of each call; below the last layer, the edit
        "middle_layers": {"layers": [3]},  # of the prompt's last row would reach the next token through the cache
    }
    method = METHODS[name](**settings.get(name, {}))
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_scienceqa", "gap": 0}), "tuning", 3)
    inputs = mini_llava.inputs(samples)
    model: Any = mini_llava.model
    stop = inputs["input_ids"].shape[1] - 1
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    with tdrs.intervene(model, method), torch.no_grad():
        whole = model(**inputs, position_ids=positions).logits[:, -1]
        head = {name: x[:, :stop] for name, x in inputs.items() if name != "pixel_values"}
        out = model(**head, pixel_values=inputs["pixel_values"], position_ids=positions[:, :stop], use_cache=True)
        step = model(
            inputs["input_ids"][:, stop:],
            attention_mask=inputs["attention_mask"],
            position_ids=positions[:, stop:],
            past_key_values=out.past_key_values,
        ).logits[:, -1]
    torch.testing.assert_close(step, whole, atol=1e-3, rtol=1e-3)


def test_roles_need_input_ids(mini_llava: Backbone) -> None:
    model: Any = mini_llava.model
    with tdrs.intervene(model, PAI(gamma=1)), pytest.raises(ValueError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 4, model.config.text_config.hidden_size))


def test_roles_of_tokens(mini_llava: Backbone, calls: list[Call]) -> None:
    """System before the image, then image, then text; also during decoding, and with left padding."""
    from tdrs import benchmarks

    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_scienceqa", "gap": 0}), "tuning", 3)
    inputs = mini_llava.inputs(samples)
    with tdrs.intervene(mini_llava.model, PAI(gamma=1, layers=[0])):
        mini_llava.model.generate(**inputs, max_new_tokens=2, do_sample=False, eos_token_id=-1)
    assert len(calls) == 2
    image = inputs["input_ids"] == mini_llava.model.config.image_token_id
    for sample, call in ((s, c) for c in calls for s in range(3)):
        roles = call.roles[sample].tolist()  # type: ignore[index]
        first = image[sample].tolist().index(True)
        count = int(image[sample].sum())
        rest = call.key.shape[2] - first - count
        assert roles == [SYSTEM] * first + [IMAGE] * count + [TEXT] * rest


def test_a_prompt_in_pieces_warns_under_call_statistics(llama: LlamaForCausalLM) -> None:
    with tdrs.intervene(llama, STRONG):
        out = llama(IDS[:, :20], use_cache=True)
        with pytest.warns(UserWarning, match="in pieces"):
            llama(IDS[:, 20:], past_key_values=out.past_key_values)


def test_a_rotation_that_cannot_be_undone_is_refused(llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layer's own code is tried, so that no family gives wrong vectors without a word."""
    module = sys.modules[type(llama.model.layers[0].self_attn).__module__]
    rotate = module.apply_rotary_pos_emb
    monkeypatch.setattr(module, "apply_rotary_pos_emb", lambda q, k, cos, sin: rotate(q, k, cos, sin.roll(1, -1)))
    said = r"model = 'LlamaAttention': the vectors before rotation cannot be computed: .*; use features=post_rope"
    with tdrs.intervene(llama, TDRS()), pytest.raises(SettingError, match=said):
        llama(IDS)
    with tdrs.intervene(llama, TDRS(features="post_rope")):
        assert logits(llama).isfinite().all()


@pytest.mark.parametrize("name", ["s_aux", "position_bias"])
def test_what_is_added_to_the_softmax_is_refused(llama: LlamaForCausalLM, name: str) -> None:
    with tdrs.intervene(llama, STRONG), pytest.raises(SettingError, match=f"adds {name} to the softmax"):
        llama(IDS, **{name: torch.zeros(4)})


def test_a_cap_needs_eager(llama: LlamaForCausalLM) -> None:
    llama.config.attn_logit_softcapping = 5.0
    with pytest.raises(SettingError, match="attention = 'sdpa': does not cap logits"), tdrs.intervene(llama, STRONG):
        pass
