"""For an incomplete folder, one line says what is missing; no tensor is ever filled with random numbers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tdrs import backbones
from tdrs.backbones import BackboneSettings
from tdrs.backbones.backbone_settings import EMBEDDED
from tdrs.configuration import run
from tdrs.doctor import main_doctor
from tdrs.settings import SettingError
from tests.backbones.folders import write

WEIGHTS, POINTER = "model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4086520\n"
QUERY = "layers.2.self_attn.q_proj.weight"


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a folder, and write them again."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def named(tensors: dict[str, torch.Tensor], end: str) -> str:
    return next(name for name in tensors if name.endswith(end) and "vision" not in name)


def cut(folder: Path, size: int) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def shards(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    """The weights in two files with a changed index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    places = {name: f"model-0000{1 + number % 2}.safetensors" for number, name in enumerate(tensors)}
    for file in set(places.values()):
        part = {name: tensors[name] for name, place in places.items() if place == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    change(places)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def setting(folder: Path, name: str, **values: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda f: weights(f, lambda w: w.pop(named(w, QUERY))),
        r"the checkpoint lacks \S*layers.2.self_attn.q_proj",
    ),
    "many missing": (
        lambda f: weights(f, lambda w: [w.pop(n) for n in list(w) if "layers.1." in n]),
        r"the checkpoint lacks .* and \d+ more",
    ),
    "unexpected": (
        lambda f: weights(f, lambda w: w.update({"model.extra.weight": torch.zeros(2)})),
        "has tensors that the model does not know: model.extra.weight",
    ),
    "misshapen": (
        lambda f: weights(f, lambda w: w.update({named(w, QUERY): w[named(w, QUERY)][:-1].contiguous()})),
        r"has another shape of \S*layers.2.self_attn.q_proj",
    ),
    "cut": (
        lambda f: cut(f, 1_000_000),
        r"model.safetensors has 1000000 bytes where its header says \d+: it is cut off",
    ),
    "header cut": (lambda f: cut(f, 1000), "model.safetensors is cut off or garbled"),
    "empty": (lambda f: cut(f, 0), "model.safetensors is cut off or garbled: 0 bytes"),
    "zeros": (lambda f: (f / WEIGHTS).write_bytes(b"\0" * 5000), "model.safetensors is cut off or garbled"),
    "garbled": (lambda f: (f / WEIGHTS).write_bytes(b"\x10" + b"\0" * 7 + b"x" * 500), "has a garbled header"),
    "longer": (lambda f: (f / WEIGHTS).open("ab").write(b"more"), "where its header says"),
    "pointer": (lambda f: (f / WEIGHTS).write_bytes(POINTER), "model.safetensors is a git-lfs pointer"),
    "tokenizer's pointer": (
        lambda f: (f / "tokenizer.json").write_bytes(POINTER),
        "tokenizer.json is a git-lfs pointer",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no model.safetensors and no model.safetensors.index.json"),
    "shard gone": (
        lambda f: [shards(f, lambda p: None), (f / "model-00002.safetensors").rename(f / "kept")],  # type: ignore[func-returns-value]
        "model-00002.safetensors of 2 files of weights missing",
    ),
    "shard lacks": (
        lambda f: shards(f, lambda p: p.update({"model.extra": "model-00001.safetensors"})),
        "model-00001.safetensors lacks model.extra, which the index says it has",
    ),
    "no map": (
        lambda f: [(f / WEIGHTS).unlink(), (f / f"{WEIGHTS}.index.json").write_text("{}")],  # type: ignore[func-returns-value]
        "has no weight_map",
    ),
    "shard elsewhere": (
        lambda f: shards(f, lambda p: p.update({"model.extra": "../model-00003.safetensors"})),
        "names files outside of the folder",
    ),
    "NaN": (
        lambda f: weights(f, lambda w: w[named(w, QUERY)][0].fill_(float("nan"))),
        r"hold NaN or infinite numbers, in float32: \S*layers.2.self_attn.q_proj",
    ),
    "zeros behind": (lambda f: weights(f, lambda w: w[named(w, QUERY)].zero_()), r"all zero in \S*layers.2.self_attn"),
    "adapter": (
        lambda f: (f / "adapter_config.json").write_text("{}"),
        "an adapter is backbone.adapter, and backbone.source its base model",
    ),
    "list": (
        lambda f: (f / "generation_config.json").write_text("[]"),
        "generation_config.json contains no JSON object",
    ),
    "config of another kind": (lambda f: setting(f, "config.json", text_config=3), "cannot be loaded"),
    "another image token": (
        lambda f: setting(f, "config.json", image_token_index=7, image_token_id=7),
        "the tokenizer's image token is '<image>', 4, and 7 in config.json",
    ),
    "another patch size": (
        lambda f: setting(f, "processor_config.json", patch_size=8),
        "patch_size is 8 in processor_config.json, or by default, and the model needs 16",
    ),
    "no template": (lambda f: (f / "chat_template.jinja").unlink(), "no chat template: chat_template.jinja"),
    "no processor": (
        lambda f: (f / "processor_config.json").unlink(),
        "no processor_config.json or preprocessor_config",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json or tokenizer.model or vocab.json"),
    "no tokenizer's settings": (lambda f: (f / "tokenizer_config.json").unlink(), "no tokenizer_config.json: copy"),
    "bad processor": (lambda f: (f / "processor_config.json").write_text("{"), "processor_config.json is not JSON"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text('{"version": "1.0"}'), "cannot be loaded"),
    "bad config": (lambda f: (f / "config.json").write_text('{"model_type": "llava",'), r"config.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_not_whole_is_one_line(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED / "mini_llava", folder)
    damage, said = FAULTS[fault]
    damage(folder)
    with pytest.raises(SettingError, match=said) as error:
        backbones.load(BackboneSettings("mine", str(folder), device="cpu", dtype="float32"))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("backbone.source = ")


def test_buffers_that_earlier_versions_saved_and_whole_shards_load(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED / "mini_llava", folder)
    old = {
        "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        "vision_tower.vision_model.embeddings.position_ids": torch.zeros(1, 17, dtype=torch.long),
    }
    weights(folder, lambda tensors: tensors.update(old))
    shards(folder, lambda places: None)
    backbones.load(BackboneSettings("mine", str(folder), device="cpu", dtype="float32"))


HUB = """
import sys
from tdrs import backbones
from tdrs.backbones import BackboneSettings
for name in sys.argv[1:]:
    settings = BackboneSettings("mine", f"owner/{name}", device="cpu", dtype="float32")
    print(settings.fingerprint)
    try:
        backbones.load(settings)
        print("loaded")
    except ValueError as error:
        print(error)
"""


def test_a_hubs_folder_in_the_cache_is_looked_at_too(tmp_path: Path) -> None:
    """The hub's cache is not downloaded again; all files come from the commit that the fingerprint names."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    expected = {"whole": "loaded", "cut": "it is cut off", "missing": "lacks"}
    for name in expected:
        place = tmp_path / f"models--owner--{name}"
        shutil.copytree(EMBEDDED / "mini_llava", place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
        if name in FAULTS:
            FAULTS[name][0](place / "snapshots" / commit)
    given = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", HUB, *expected]
    said = subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[::2] == [f"owner/{name} {commit}" for name in expected]
    assert [text in answer for text, answer in zip(expected.values(), said[1::2], strict=True)] == [True] * 3


def test_files_that_are_not_read_do_no_harm(tmp_path: Path) -> None:
    """Files of a file manager and of a trainer, and an index beside a single file."""
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED / "mini_llava", folder)
    (folder / "._config.json").write_bytes(b"\x00\x05\x16\x07\xff")
    (folder / "trainer_log.json").write_text('{"a": 1}\n{"a": 2}')
    (folder / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')
    backbones.load(BackboneSettings("mine", str(folder), device="cpu", dtype="float32"))


def test_numbers_that_the_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED / "mini_llava", folder)
    weights(folder, lambda w: w[named(w, QUERY)][0].fill_(1e5))
    backbones.load(BackboneSettings("mine", str(folder), device="cpu", dtype="float32"))
    with pytest.raises(SettingError, match="hold NaN or infinite numbers, in float16"):
        backbones.load(BackboneSettings("mine", str(folder), device="cpu", dtype="float16"))


HUB_NAMES = {  # by which the hub's folders have weights, and what this version writes
    "llava": {"vision_tower.": "vision_tower.vision_model."},
    "internvl": {},
    "qwen2_5_vl": {},
}
OLD = {
    "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
    "vision_tower.vision_model.embeddings.position_ids": torch.zeros(1, 17, dtype=torch.long),
}


@pytest.mark.parametrize("kind", HUB_NAMES)
def test_a_folder_with_the_hubs_names_is_the_same_model(kind: str, tmp_path: Path) -> None:
    plain = write(kind, tmp_path / "plain")
    hub = tmp_path / "hub"
    shutil.copytree(plain, hub)
    tensors = load_file(plain / WEIGHTS)
    for old, new in HUB_NAMES[kind].items():
        tensors = {new + name.removeprefix(old) if name.startswith(old) else name: w for name, w in tensors.items()}
    save_file(tensors | (OLD if kind == "llava" else {}), hub / WEIGHTS, metadata={"format": "pt"})
    first, second = (
        backbones.load(BackboneSettings(kind, str(folder), device="cpu", dtype="float32")).model.state_dict()
        for folder in (plain, hub)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_answer_ends_where_the_template_ends_a_turn(tmp_path: Path) -> None:
    """Whatever end token config.json names; InternVL2's text model names one that it never generates."""
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED / "mini_internvl", folder)
    settings = BackboneSettings("mine", str(folder), device="cpu", dtype="float32")
    made = backbones.load(settings)
    end = made.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    (folder / "generation_config.json").unlink()
    text = json.loads((folder / "config.json").read_text())["text_config"]
    setting(folder, "config.json", text_config=text | {"eos_token_id": 1})
    setting(folder, "tokenizer_config.json", eos_token="<s>")
    assert end in backbones.load(settings).model.generation_config.eos_token_id


def test_the_doctor_fails_on_a_checkpoint_with_one_tensor_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED / "mini_llava", folder)
    FAULTS["missing"][0](folder)
    given = ["backbone=mini_llava", f"backbone.source={folder}", f"output={tmp_path / 'out'}", "samples=8"]
    assert run("doctor", main_doctor, "", given) != 0
    assert "the checkpoint lacks" in capsys.readouterr().err


def test_decoding_is_greedy_whatever_the_folder_says(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED / "mini_llava", folder)
    path = folder / "generation_config.json"
    said = json.loads(path.read_text())
    more = {
        "do_sample": True,
        "temperature": 3.0,
        "suppress_tokens": [7],
        "no_repeat_ngram_size": 1,
        "min_new_tokens": 9,
    }
    path.write_text(json.dumps(said | more))
    config = backbones.load(
        BackboneSettings("mine", str(folder), device="cpu", dtype="float32")
    ).model.generation_config
    assert config.eos_token_id == [said["eos_token_id"]]
    assert not config.do_sample
    assert [getattr(config, name) for name in ("suppress_tokens", "no_repeat_ngram_size", "min_new_tokens")] == [
        None
    ] * 3


def test_two_checkpoints_that_differ_behind_the_first_mebibyte_are_two(tmp_path: Path) -> None:
    found = []
    for name in ("base", "tuned"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        with (folder / WEIGHTS).open("wb") as file:
            file.truncate(25 << 20)
            file.seek((25 << 20) - 8)
            file.write(name[:4].encode())
        found.append(BackboneSettings("x", str(folder)).fingerprint)
    assert found[0] != found[1]
    before = found[0]
    (tmp_path / "base" / "config.json").write_text('{"changed": 1}')  # in this process
    assert BackboneSettings("x", str(tmp_path / "base")).fingerprint != before
    (tmp_path / "tuned" / "README.md").write_text("a card")
    (tmp_path / "tuned" / ".cache").write_text("hidden")
    assert BackboneSettings("x", str(tmp_path / "tuned")).fingerprint == found[1]


def test_a_relative_folder_is_another_in_another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    for place, name in (("a", "mini_llava"), ("b", "mini_internvl")):
        shutil.copytree(EMBEDDED / name, tmp_path / place / "model")
        monkeypatch.chdir(tmp_path / place)
        settings = BackboneSettings("x", "./model")
        shapes.append(settings._config.model_type)
        assert settings.location == str(tmp_path / place / "model")
    assert shapes == ["llava", "internvl"]
