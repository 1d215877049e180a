"""Weights in 8 and 4 bits: the numbers are those of the quantised weights, and an edit acts as on a plain model."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

from tdrs import DC, RE, TDRS, backbones, benchmarks, intervene
from tdrs.attention.call import Call
from tdrs.backbones import Backbone, BackboneSettings
from tdrs.backbones.backbone_settings import EMBEDDED
from tdrs.configuration import compose, plain
from tdrs.doctor import _files, _model
from tdrs.evaluation import complete, plan
from tdrs.published import published
from tdrs.records import Records
from tdrs.settings import SettingError
from tests.backbones.folders import write
from tests.backbones.test_checkpoint import shards
from tests.backbones.test_families import several

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")

SETTINGS = BackboneSettings("mini_llava", "embedded:mini_llava", device="cpu")
METHOD = TDRS(dc=DC(0.3, 0.7, "absolute"), re=RE(0.4, 1.3, "absolute"), stats_scope="row")
NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """A matrix rounded to NF4: in blocks of 64, the nearest of 16 levels, which are shares of the largest value.

    Blocks go on from one row to the next.
    """
    blocks = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    levels = torch.tensor(NF4)
    found = levels[(blocks[..., None] / largest[..., None] - levels).abs().argmin(dim=-1)] * largest
    return found.flatten()[: weight.numel()].view_as(weight)


def int8(module: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """LLM.int8: weights and inputs by rows in 8 bits; inputs stay as they are in columns where one reaches 6."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    half = rows.half().float()
    large = (half.abs() >= 6).any(dim=0)
    scales = module.weight.half().float().abs().amax(dim=1, keepdim=True)
    weight = (module.weight.half().float() * 127 / scales).round()
    small = half.masked_fill(large, 0)
    largest = half.masked_fill(half.abs() >= 6, 0).abs().amax(dim=1, keepdim=True).clamp_min(1e-6)
    found = ((small * 127 / largest).round() @ weight.T) * largest * scales.T / 127**2
    found = found + rows[:, large] @ (weight[:, large] * scales / 127).T
    found = found if module.bias is None else found + module.bias
    return found.view(*inputs.shape[:-1], -1)


@pytest.fixture(scope="module", params=[8, 4])
def quantised(request: pytest.FixtureRequest) -> Backbone:
    return backbones.load(replace(SETTINGS, bits=request.param))


def samples(count: int = 4, gap: int = 5) -> Any:
    return benchmarks.load(benchmarks.from_settings({"name": "mini_gqa", "gap": gap}), "tuning", count)


@torch.inference_mode()
def test_each_matrix_computes_with_quantised_weights(quantised: Backbone) -> None:
    """All linear layers of the tower, the projector and the decoder, on their own inputs; not the head."""
    plain_model = backbones.load(SETTINGS).model
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.update({name: (inputs[0], output)})

    named = {name: module for name, module in quantised.model.named_modules() if isinstance(module, torch.nn.Linear)}
    hooks = [module.register_forward_hook(keep(name)) for name, module in named.items()]
    inputs = quantised.inputs(samples())
    logits = quantised.model(**inputs).logits
    stock = plain_model(**inputs).logits
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(named) > 40
    for name, (given, found) in seen.items():
        module = plain_model.get_submodule(name)
        if name == "lm_head":
            expected = module(given)
        elif quantised.settings.bits == 4:
            expected = torch.nn.functional.linear(given, nf4(module.weight), module.bias)
        else:
            expected = int8(module, given)
        # an input that lies between two of 255 levels can take either
        close = 1e-5 if quantised.settings.bits == 4 else 1e-3
        assert (found - expected).abs().mean() < close * expected.abs().mean(), name
        if name != "lm_head":
            error = (found - module(given)).abs().mean()
            assert (found - expected).abs().mean() < 0.1 * error, name
    assert not torch.allclose(logits, stock, atol=0.1)


@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl", "paligemma"])
@torch.inference_mode()
def test_rows_that_are_no_whole_blocks(name: str, tmp_path: Path) -> None:
    """Rows of 16, 24, 48 and 64 numbers in 4 bits: the logits are those of a plain model with the rounded matrices."""
    attention = "eager" if name == "paligemma" else "sdpa"
    settings = BackboneSettings(name, str(write(name, tmp_path / name)), device="cpu", attention=attention)
    expected = backbones.load(settings)
    widths = set()
    for module_name, module in expected.model.named_modules():
        if isinstance(module, torch.nn.Linear) and module_name != "lm_head":
            module.weight.data = nf4(module.weight)
            widths.add(module.in_features % 64)
    assert len(widths) > 2
    found = backbones.load(replace(settings, bits=4))
    inputs = expected.inputs(several())
    seen = inputs["attention_mask"].bool()
    logits = [one.model(**inputs).logits[seen] for one in (found, expected)]
    assert (logits[0] - logits[1]).abs().max() < 1e-5 * logits[1].abs().max()


@torch.inference_mode()
def test_inputs_of_four_dimensions_in_8_bits(tmp_path: Path) -> None:
    """The projector of Aya Vision gets rows and columns of tiles."""
    settings = BackboneSettings("aya_vision", str(write("aya_vision", tmp_path / "model")), device="cpu")
    model = backbones.load(replace(settings, bits=8)).model
    projector = backbones.load(settings).model.model.multi_modal_projector.linear_1
    given = torch.randn(2, 3, 4, projector.in_features)
    found = model.model.multi_modal_projector.linear_1(given)
    expected = int8(projector, given)
    assert found.shape == expected.shape
    assert (found - expected).abs().mean() < 1e-3 * expected.abs().mean()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_folder_that_was_quantised_in_another_type(bits: int, folder: Path) -> None:
    half = backbones.load(replace(SETTINGS, bits=bits, dtype="bfloat16"))
    half.model.save_pretrained(folder)
    whole = backbones.load(replace(SETTINGS, source=str(folder)))
    kinds = {weight.dtype for weight in whole.model.parameters() if weight.is_floating_point()}
    assert kinds == {torch.float32}
    assert {getattr(module, "compute_dtype", None) for module in whole.model.modules()} <= {None, torch.float32}
    with torch.inference_mode():
        expected = half.model(**half.inputs(samples())).logits.float()
        found = whole.model(**whole.inputs(samples())).logits
    assert (found - expected).abs().mean() < 0.03 * expected.abs().mean()


def test_an_edit_acts_as_on_a_plain_model(quantised: Backbone) -> None:
    """The core and its reference agree, the stages off change no bit, vectors before rotation are the projections'."""
    model, inputs = quantised.model, quantised.model_inputs(samples())
    calls: list[Call] = []
    keys: list[torch.Tensor] = []
    hook = model.get_decoder().layers[1].self_attn.k_proj.register_forward_hook(lambda *a: keys.append(a[2]))
    with torch.inference_mode():
        stock = model(**inputs).logits
        with intervene(model, TDRS(sd=False, dc=None, re=None)):
            assert torch.equal(model(**inputs).logits, stock)
        with intervene(model, METHOD, "reference"):
            reference = model(**inputs).logits
        with intervene(model, METHOD) as session:
            execute = session.execute

            def keep(call: Call, method: Any) -> torch.Tensor:
                calls.append(call)
                return execute(call, method)

            session.execute = keep
            edited = model(**inputs).logits
    hook.remove()
    real = inputs["attention_mask"].bool()
    scale = float(stock[real].abs().max())
    # in 8 bits, a last digit can take an input to the next of 255 levels
    assert (edited - reference)[real].abs().max() < (1e-5 if quantised.settings.bits == 4 else 1e-2) * scale
    assert (edited - stock)[real].abs().max() > 1e-2 * scale
    call = calls[1]
    found = keys[-1].unflatten(-1, (call.key.shape[1], -1)).transpose(1, 2)
    torch.testing.assert_close(call.unrotated_key, call.without_padding(found.clone()), atol=1e-4, rtol=1e-4)


def test_common_beginnings_are_shared_where_that_changes_no_answer(quantised: Backbone) -> None:
    """LLM.int8 looks at whole batches, so prompts are read whole there, and no row is left out in the last layer."""
    asked, prompts, rows = samples(12, 40), [], []
    decoder = quantised.model.get_decoder()
    hooks = [
        decoder.layers[0].register_forward_pre_hook(lambda _, args: prompts.append(len(args[0]))),
        decoder.layers[-1].mlp.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1])),
    ]
    with intervene(quantised.model, METHOD):
        shared, whole = (replace(quantised, share_prefixes=share).answer(asked, "gqa") for share in (True, False))
    for hook in hooks:
        hook.remove()
    assert (prompts[0] < len(asked)) == (quantised.settings.bits == 4)
    assert (rows[0] == 1) == (quantised.settings.bits == 4)
    assert [a.text for a in shared] == [a.text for a in whole]
    expected = pytest.approx([a.margin for a in whole], abs=2e-3) if quantised.settings.bits == 4 else whole
    assert ([a.margin for a in shared] if quantised.settings.bits == 4 else shared) == expected


def test_dtypes_and_spread_layers(quantised: Backbone) -> None:
    for more in ({"dtype": "bfloat16"}, {"device": "spread"}):
        other = backbones.load(replace(quantised.settings, **more))
        assert str(other.model.dtype) == f"torch.{more.get('dtype', 'float32')}"
        first, second = (one.answer(samples(), "gqa") for one in (quantised, other))
        assert [a.margin for a in first] == pytest.approx([a.margin for a in second], abs=1.5)


def test_the_doctor_and_the_notes_say_it(quantised: Backbone, tmp_path: Path) -> None:
    bits = quantised.settings.bits
    config = plain(compose("evaluate", ["dataset=mini_gqa", "dataset.gap=0", "limit=4", f"backbone.bits={bits}"]))
    planned = plan(config)
    lines = _model(planned, quantised, 1.0).lines
    assert "1.0 million parameters" in lines[0]
    assert f"float32, weights in {bits} bits on " in lines[1]
    told = "weights in 8 bits: an answer depends a little on the other questions of its batch"
    records, samples = Records(tmp_path), planned.load()
    key = planned.cache_key(samples)
    complete(planned, samples, lambda: quantised, records, key, lambda count: None)
    assert (told in records.read(key).notes) == (told in _files(planned).lines) == (bits == 8)
    assert published(config["backbone"], config["dataset"]) == f"none is made with backbone.bits={bits}"


def test_bits_are_part_of_the_cache_key() -> None:
    known = [replace(SETTINGS, bits=bits).decisive for bits in (None, 8, 4)]
    assert "bits" not in known[0]
    assert [one.get("bits") for one in known] == [None, 8, 4]
    assert all("bitsandbytes" in one for one in known[1:])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED / "mini_llava", tmp_path / "model"))


def weights(folder: Path, change: Callable[[torch.Tensor], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(next(tensor for name, tensor in tensors.items() if name.endswith("layers.2.self_attn.q_proj.weight")))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("bits", [8, 4])
def test_a_folder_that_is_quantised_already(bits: int, folder: Path) -> None:
    quantised = backbones.load(replace(SETTINGS, bits=bits))
    quantised.model.save_pretrained(folder)
    again = replace(SETTINGS, source=str(folder))
    assert again.weight_bits == again.decisive["bits"] == bits
    loaded = backbones.load(again)
    with torch.inference_mode():
        inputs = quantised.model_inputs(samples())
        assert torch.equal(loaded.model(**inputs).logits, quantised.model(**inputs).logits)
    with pytest.raises(
        SettingError, match=rf"backbone.bits = 4: must be null: the weights in .* have {bits} bits already"
    ):
        backbones.load(replace(again, bits=4))


def test_packed_bytes_of_any_type_are_no_values(folder: Path) -> None:
    """A folder whose packed weights and scales of scales have types of their own, as training with FSDP leaves it."""
    packed = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_storage=torch.bfloat16, bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    given = {"dtype": torch.bfloat16, "quantization_config": packed, "device_map": {"": "cpu"}}
    AutoModelForImageTextToText.from_pretrained(folder, **given).save_pretrained(folder)
    found, expected = (
        backbones.load(one) for one in (replace(SETTINGS, source=str(folder)), replace(SETTINGS, bits=4))
    )
    with torch.inference_mode():
        logits = [one.model(**one.inputs(samples())).logits for one in (found, expected)]
    assert (logits[0] - logits[1]).abs().mean() < 0.06 * logits[1].abs().mean()


def configure(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": values}))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (
        lambda f: weights(f, lambda w: w[3].fill_(torch.nan)),
        r"hold NaN or infinite numbers: \S+2.self_attn.q_proj",
    ),
    "infinite": (lambda f: weights(f, lambda w: w[3].fill_(torch.inf)), r"hold NaN or infinite numbers: \S+q_proj"),
    "zeros": (lambda f: weights(f, torch.Tensor.zero_), r"are all zero in \S+layers.2.self_attn.q_proj.weight"),
}


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("fault", FAULTS)
def test_values_are_checked_before_they_are_quantised(fault: str, bits: int, folder: Path) -> None:
    change, said = FAULTS[fault]
    change(folder)
    with pytest.raises(SettingError, match=rf"^backbone.source = .*{said}"):
        backbones.load(replace(SETTINGS, source=str(folder), bits=bits))


def test_all_files_of_weights_are_checked(folder: Path) -> None:
    whole = backbones.load(replace(SETTINGS, bits=4))
    shards(folder, lambda places: None)
    settings = replace(SETTINGS, source=str(folder), bits=4)
    assert len(settings.weight_files) == 2
    inputs = whole.model_inputs(samples())
    with torch.inference_mode():
        assert torch.equal(backbones.load(settings).model(**inputs).logits, whole.model(**inputs).logits)
    for path in settings.weight_files:
        tensors = load_file(path)
        tensors[next(iter(tensors))].view(-1)[0] = torch.nan
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(SettingError, match="hold NaN or infinite numbers"):
            backbones.load(settings)
        tensors[next(iter(tensors))].view(-1)[0] = 0.1
        save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("bits", [0, 1, 16])
def test_other_numbers_of_bits(bits: int) -> None:
    with pytest.raises(SettingError, match=rf"^bits = {bits}: must be 8, 4 or null"):
        replace(SETTINGS, bits=bits)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    configure(folder, quant_method="gptq", bits=4)
    said = "its weights are quantised by gptq; those of bitsandbytes can be loaded"
    monkeypatch.setattr("tdrs.backbones.backbone.load_processor", lambda *_: pytest.fail("loaded"))
    other = replace(SETTINGS, source=str(folder))
    for ask in (lambda: other.decisive, lambda: backbones.load(other)):
        with pytest.raises(SettingError, match=rf"^backbone.source = .*: {said}"):
            ask()
    configure(folder, quant_method="bitsandbytes", load_in_4bit=True)
    monkeypatch.setattr("tdrs.backbones.quantisation.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"quantised, which needs bitsandbytes accelerate: pip install bitsandbytes"):
        backbones.load(other)
    with pytest.raises(SettingError, match=r"^bits = 4: needs bitsandbytes accelerate: pip install bitsandbytes acc"):
        replace(SETTINGS, bits=4)


def test_a_machine_that_cannot_compute_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no backend\nmore")

    monkeypatch.setattr("tdrs.backbones.backbone.load_processor", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.Bnb4BitHfQuantizer.validate_environment", refuse)
    said = r"^backbone.bits = 4: cannot be computed here \(no backend\)$"
    with pytest.raises(SettingError, match=said):
        backbones.load(replace(SETTINGS, bits=4))


def test_an_adapter_is_not_merged_into_them(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"^adapter = .*: cannot be merged into weights of bits=8"):
        replace(SETTINGS, bits=8, adapter=str(tmp_path))
