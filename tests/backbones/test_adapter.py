"""A LoRA adapter is merged into a model's weights; for an adapter that cannot be used whole, one line says why."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tdrs import backbones, benchmarks
from tdrs.backbones import BackboneSettings
from tdrs.configuration import compose, plain
from tdrs.evaluation import plan
from tdrs.published import published
from tdrs.settings import SettingError

peft = pytest.importorskip("peft", reason="peft is not installed")

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SETTINGS = BackboneSettings("mini_llava", "embedded:mini_llava", device="cpu")
QUERY = "base_model.model.model.language_model.layers.2.self_attn.q_proj"
TARGETS = r"model\.language_model\..*\.(q_proj|v_proj|down_proj)"
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank stabilised, ranks by layer": {"use_rslora": True, "rank_pattern": {"layers.1.self_attn.q_proj": 2}},
    "dora": {"use_dora": True},
    "tower and projector": {"target_modules": ["q_proj", "linear_1"], "modules_to_save": ["linear_2"]},
    "some tokens": {"trainable_token_indices": [7, 9, 30]},
    "biases": {"bias": "lora_only", "target_modules": ["fc1", "linear_1"]},
    "all biases": {"bias": "all", "target_modules": ["fc1", "linear_1"]},
    "residual": {"init_lora_weights": "pissa"},
}


def make(folder: Path, seed: int = 0, **values: Any) -> Path:
    """An adapter of mini_llava with random weights."""
    model = backbones.load(SETTINGS).model
    torch.manual_seed(seed)
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "target_modules": TARGETS, **values}))
    for name, weight in adapted.named_parameters():
        if weight.requires_grad and "magnitude" not in name:
            weight.data += 0.1 * torch.randn_like(weight)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "adapter"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_merged_model_is_pefts_unmerged_one(variant: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "a", **VARIANTS[variant])
    stock = backbones.load(SETTINGS)
    merged = backbones.load(replace(SETTINGS, adapter=str(folder)))
    assert type(merged.model) is type(stock.model)
    assert list(merged.model.state_dict()) == list(stock.model.state_dict())
    samples = benchmarks.load(benchmarks.from_settings({"name": "mini_gqa", "gap": 5}), "tuning", 4)
    inputs = stock.inputs(samples)
    with torch.inference_mode():
        before = stock.model(**inputs).logits
        after = merged.model(**inputs).logits
        found = merged.model(**merged.model_inputs(samples)).logits
        unmerged = peft.PeftModel.from_pretrained(stock.model, folder).eval()
        expected = unmerged(**inputs).logits
    scale = float(expected.abs().max())
    assert (after - expected).abs().max() < 1e-5 * scale
    assert (found - expected).abs().max() < 1e-5 * scale
    assert (before - expected).abs().max() > 1e-2 * scale


def test_it_is_merged_in_the_models_dtype(adapter: Path) -> None:
    settings = replace(SETTINGS, adapter=str(adapter))
    whole, half = (backbones.load(replace(settings, dtype=dtype)).model for dtype in ("float32", "bfloat16"))
    assert half.dtype == torch.bfloat16
    for name, weight in half.state_dict().items():
        torch.testing.assert_close(weight.float(), whole.state_dict()[name], atol=2e-2, rtol=2e-2)


def evaluation(adapter: Path | None, *more: str) -> Any:
    given = [] if adapter is None else [f"backbone.adapter={adapter}"]
    return plan(plain(compose("evaluate", ["dataset=mini_pope", "limit=4", *given, *more])))


def test_the_adapters_files_are_part_of_the_cache_key(copied: Path, tmp_path: Path) -> None:
    def key(adapter: Path | None) -> str:
        planned = evaluation(adapter)
        found: str = planned.cache_key(planned.load())
        return found

    elsewhere = Path(shutil.copytree(copied, tmp_path / "elsewhere"))
    (elsewhere / "README.md").write_text("another card")
    known = {key(None), key(copied)}
    assert len(known) == 2
    assert key(elsewhere) in known  # the same files
    tensors = load_file(copied / WEIGHTS)
    tensors[f"{QUERY}.lora_A.weight"][0, 0] += 1
    save_file(tensors, copied / WEIGHTS)
    known.add(key(copied))
    configure(elsewhere, lora_alpha=3)
    known.add(key(elsewhere))
    assert len(known) == 4


def test_another_base_model_is_noted(copied: Path) -> None:
    assert evaluation(copied).backbone.notes == []
    configure(copied, base_model_name_or_path="owner/other")
    note = f"the adapter {copied} was made for owner/other, and is merged into embedded:mini_llava"
    assert evaluation(copied).backbone.notes == [note]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda f: weights(f, lambda w: [t.zero_() for name, t in w.items() if "lora_B" in name]),
            "one matrix of each",
        ),
        (
            lambda f: weights(f, lambda w: [t.zero_() for name, t in w.items() if "lora_A" in name]),
            "one matrix of each",
        ),
        (lambda f: configure(f, lora_alpha=0), "its lora_alpha is 0"),
    ],
)
def test_an_adapter_that_changes_nothing_is_noted(
    change: Callable[[Path], object], said: str, copied: Path, tmp_path: Path
) -> None:
    change(copied)
    (note,) = evaluation(copied).backbone.notes
    assert note.startswith(f"the adapter {copied} changes no weight: {said}")
    settings = replace(SETTINGS, adapter=str(copied))
    stock, same = (backbones.load(one).model.state_dict() for one in (SETTINGS, settings))
    assert all(torch.equal(stock[name], value) for name, value in same.items())


def test_an_adapter_of_which_one_pair_is_zero_or_one_with_more_tensors_is_not(copied: Path, tmp_path: Path) -> None:
    weights(copied, lambda w: w[f"{QUERY}.lora_B.weight"].zero_())
    assert evaluation(copied).backbone.notes == []
    scaled = make(tmp_path / "dora", use_dora=True)
    weights(scaled, lambda w: [tensor.zero_() for name, tensor in w.items() if "lora_B" in name])
    assert evaluation(scaled).backbone.notes == []


def test_no_published_score_is_that_of_a_model_with_an_adapter(adapter: Path) -> None:
    config = evaluation(adapter, "dataset.gap=0").config
    assert published(config["backbone"], config["dataset"]) == f"none is made with backbone.adapter={adapter}"


def configure(folder: Path, **values: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (shutil.rmtree, "no such folder, and not a hub id"),
    "no configuration": (lambda f: (f / CONFIG).unlink(), f"no {CONFIG} in the folder"),
    "a whole model": (
        lambda f: [(f / CONFIG).unlink(), (f / "config.json").write_text("{}")],  # type: ignore[func-returns-value]
        "it is a whole model, which backbone.source takes",
    ),
    "no JSON": (lambda f: (f / CONFIG).write_text("{"), f"{CONFIG} is not JSON"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), f"{CONFIG} contains no JSON object"),
    "another kind": (lambda f: configure(f, peft_type="IA3"), "has peft_type 'IA3'; only LORA can be merged"),
    "a later version": (lambda f: configure(f, use_new=True), r"has use_new, which peft \S+ does not know"),
    "by tokens": (lambda f: configure(f, alora_invocation_tokens=[3]), "has alora_invocation_tokens: such an adapter"),
    "a value of no use": (lambda f: configure(f, r="many"), "cannot be put into the model"),
    "a random start": (
        lambda f: configure(f, init_lora_weights="pissa_niter_4"),
        "has init_lora_weights 'pissa_niter_4': it was trained on weights drawn at random; save it again",
    ),
    "a bias without one": (
        lambda f: make(f, lora_bias=True),
        "cannot be merged .Impossible to merge LoRA with `lora_bias=True`",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"no {WEIGHTS}$"),
    "a pickle": (
        lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"),
        f"no {WEIGHTS}; adapter_model.bin is a pickle, which can run code and is not read",
    ),
    "pointer": (
        lambda f: (f / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
        "git-lfs pointer",
    ),
    "cut": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "it is cut off"),
    "garbled": (lambda f: (f / WEIGHTS).write_bytes(bytes(99)), "is cut off or garbled"),
    "no tensor": (lambda f: weights(f, dict.clear), "has no tensors"),
    "missing": (lambda f: weights(f, lambda w: w.pop(f"{QUERY}.lora_B.weight")), r"lacks \S+q_proj.lora_B.weight"),
    "unknown": (
        lambda f: weights(f, lambda w: w.update({f"{QUERY.replace('.2.', '.9.')}.lora_A.weight": torch.zeros(4, 64)})),
        r"has tensors that the model does not know: \S+layers.9.self_attn.q_proj.lora_A",
    ),
    "misshapen": (
        lambda f: weights(f, lambda w: w.update({f"{QUERY}.lora_A.weight": torch.zeros(3, 64)})),
        r"has another shape of model.language_model.layers.2.self_attn.q_proj.lora_A.weight",
    ),
    "another rank": (lambda f: configure(f, r=8), r"has another shape of .* and \d+ more"),
    "NaN": (
        lambda f: weights(f, lambda w: w[f"{QUERY}.lora_A.weight"][0].fill_(torch.nan)),
        r"holds NaN .*: \S+lora_A",
    ),
    "infinite": (lambda f: weights(f, lambda w: w[f"{QUERY}.lora_A.weight"][0].fill_(torch.inf)), "infinite numbers"),
    "no such module": (lambda f: configure(f, target_modules=["attn"]), "cannot be put into the model"),
    "fewer modules": (lambda f: configure(f, target_modules=["q_proj"]), "has tensors that the model does not know"),
    "a tied weight": (
        lambda f: make(f, target_modules=["lm_head"]),
        "changes lm_head.weight, which is the same weight as .*embed_tokens.weight",
    ),
    "biases to save": (lambda f: configure(f, bias="all"), r"lacks \S*bias.* and \d+ more"),
    "more to save": (lambda f: configure(f, modules_to_save=["linear_2"]), r"lacks \S*linear_2"),
}
LATE = (
    "a value of no use", "missing", "unknown", "misshapen", "another rank", "no such module", "fewer modules",
    "a tied weight", "biases to save", "more to save", "a bias without one",
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_an_adapter_that_cannot_be_used_whole(fault: str, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_, said = FAULTS[fault]
    break_(copied)
    if fault not in LATE:  # the model is not loaded
        monkeypatch.setattr("tdrs.backbones.backbone.load_processor", lambda *_: pytest.fail("loaded"))
    with pytest.raises(SettingError, match=rf"^(backbone\.)?adapter = .*{said}") as error:
        backbones.load(replace(SETTINGS, adapter=str(copied)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fault", ["no weights", "cut", "a list", "gone"])
def test_it_is_found_before_anything_is_loaded(fault: str, copied: Path) -> None:
    FAULTS[fault][0](copied)

    def key() -> str:
        planned = evaluation(copied)
        found: str = planned.cache_key(planned.load())
        return found

    with pytest.raises(SettingError, match=r"^backbone\.adapter = "):
        key()


def test_without_peft(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tdrs.backbones.adapter.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"^adapter = .*: needs peft: pip install peft$"):
        replace(SETTINGS, adapter=str(adapter))


def test_what_does_not_go_together(adapter: Path) -> None:
    with pytest.raises(SettingError, match="cannot be merged into a model with device=spread"):
        replace(SETTINGS, adapter=str(adapter), device="spread")
    with pytest.raises(SettingError, match="no such folder, and not a hub id"):
        replace(SETTINGS, adapter="nothing")


def test_an_adapter_is_no_source(adapter: Path) -> None:
    with pytest.raises(SettingError, match=r"an adapter is backbone.adapter, and backbone.source its base model"):
        replace(SETTINGS, source=str(adapter))


def test_one_of_the_hub_is_looked_up_in_the_cache(monkeypatch: pytest.MonkeyPatch, adapter: Path) -> None:
    def download(repository: str, name: str) -> str:
        if repository == "owner/gone":
            raise OSError("no network\nmore")
        return str(adapter / name)

    monkeypatch.setattr("tdrs.backbones.adapter.hf_hub_download", download)
    known, gone = (replace(SETTINGS, adapter=f"owner/{name}") for name in ("known", "gone"))
    assert known.adapter_fingerprint == replace(SETTINGS, adapter=str(adapter)).adapter_fingerprint
    with pytest.raises(
        SettingError, match=r"^backbone\.adapter = 'owner/gone': .*\(no network\); `hf download owner/gone`"
    ):
        _ = gone.adapter_fingerprint
