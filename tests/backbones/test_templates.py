"""Chat templates are programs of a model's folder: one that cannot be used is one line before the model is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import MambaConfig

import tdrs
from tdrs import backbones, benchmarks
from tdrs.backbones import Backbone
from tdrs.backbones.backbone_settings import EMBEDDED
from tdrs.settings import SettingError
from tests.benchmarks.test_text import language_model


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("text"))


def load(source: Path, folder: Path, template: str, **values: Any) -> Backbone:
    """A copy of a model with another chat template; "" leaves it as it is."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return backbones.load(backbones.from_settings({"name": "tiny", "source": str(folder), "device": "cpu", **values}))


USER = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
PARTS = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
USER_ALONE = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + USER


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in", "the chat template fails ("),
        ("{{ messages[0]['contents'] + 'x' }}", "the chat template fails ("),
        ("{{ raise_exception('Never') }}", "the chat template fails (Never)"),
        ("Hello", "the chat template leaves the user's text out"),
        (PARTS, "the chat template leaves the user's text out"),
    ],
)
def test_a_language_models_template_must_work(text_folder: Path, tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(SettingError) as error:
        load(text_folder, tmp_path, template)
    assert str(error.value).startswith(f"backbone.source = '{tmp_path}': {message}")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in", "the chat template fails ("),
        ("{{ raise_exception('Never') }}", "the chat template fails (Never)"),
        ("Is it? Yes", "the chat template leaves the picture out"),
        ("<image>", "the chat template leaves the user's text out"),
    ],
)
def test_a_vision_models_template_must_work(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(SettingError) as error:
        load(EMBEDDED / "mini_llava", tmp_path, template)
    assert str(error.value).startswith(f"backbone.source = '{tmp_path}': {message}")


@pytest.mark.parametrize("around", ["Look! <image> {}", "{}<image>"])
def test_text_in_front_of_a_picture_is_refused_where_it_has_no_place(tmp_path: Path, around: str) -> None:
    """A template that writes other words if there is a picture, or a picture in any case."""
    words = around.format("{% for p in messages[0]['content'] %}{{ p['text'] }}{% endfor %}")
    plain = "" if around.startswith("{") else "{% if messages[0]['content'] | length == 1 %}Listen! ?{% else %}"
    backbone = load(EMBEDDED / "mini_llava", tmp_path, f"{plain}{words}{'{% endif %}' if plain else ''}")
    asked = {"name": "mini_pope", "gap": 5}
    (near,) = benchmarks.load(benchmarks.from_settings(asked), "tuning", 1)
    (far,) = benchmarks.load(benchmarks.from_settings(asked | {"filler": "before_image"}), "tuning", 1)
    assert len(backbone.inputs([near])["input_ids"][0])
    with pytest.raises(
        SettingError, match=r"backbone.source = .*: takes no text in front of the picture, as filler=bef"
    ):
        backbone.inputs([far])


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (NO_SYSTEM, "The system", "the chat template refuses it (No system role)"),
        (NO_SYSTEM, "", "the chat template refuses it (No system role)"),
        (USER_ALONE, "The system", "the chat template leaves it out"),
    ],
)
def test_a_system_prompt_is_told_or_refused(
    text_folder: Path, tmp_path: Path, template: str, system: str, message: str
) -> None:
    with pytest.raises(SettingError) as error:
        load(text_folder, tmp_path, template, system=system)
    assert str(error.value) == f"backbone.system = {system!r}: {message}"
    assert load(text_folder, tmp_path, template).processor.chat_template == template


def test_a_tokenizer_without_marks_for_padding_is_padded(text_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(text_folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "eos_token"}))
    backbone = load(tmp_path, tmp_path / "same", "")
    samples = benchmarks.load(benchmarks.from_settings({"name": "text", "source": "generated"}), "tuning", 2)
    alone = [backbone.inputs([sample])["input_ids"][0].tolist() for sample in samples]
    inputs = backbone.inputs(samples)
    both = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    assert both == alone


def test_a_model_without_attention_is_one_line(tmp_path: Path) -> None:
    MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=9).save_pretrained(tmp_path)
    settings = backbones.from_settings({"name": "tiny", "source": str(tmp_path)})
    with pytest.raises(SettingError, match=r"backbone.source = .*: a model of type mamba has no layers with heads of"):
        settings.shape  # noqa: B018


def test_passages_are_not_asked_of_a_vision_model(mini_llava: Backbone) -> None:
    with pytest.raises(SettingError, match=r"benchmark = 'text': has passages of text; only questions about pictures"):
        tdrs.evaluate(mini_llava.model, mini_llava.processor, "text", limit=2)
