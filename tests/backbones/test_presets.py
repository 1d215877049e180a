"""Each named backbone takes the path of its family's small model, and the table of the documents is right."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tdrs import backbones
from tdrs.backbones.families import FAMILIES, family_of
from tdrs.configuration import choice, choices
from tdrs.settings import SettingError
from tests.backbones.folders import write
from tests.backbones.small import SMALL, UNKNOWN
from tests.backbones.test_families import NAMES, NEEDS, WITHOUT_TILES
from tests.docs.page import ROOT, blocks

PRESETS = {  # the small model that stands for each preset's weights
    "gemma3_4b": "gemma3", "idefics3_8b": "idefics3", "internvl2_5_8b_mpo": "internvl", "internvl2_8b": "internvl",
    "internvl3_5_8b": "internvl", "internvl3_8b": "internvl", "llava_1_5_13b": "llava", "llava_1_5_7b": "llava",
    "llava_next_7b": "llava_next", "llava_onevision_7b": "llava_onevision", "mistral3_24b": "mistral3",
    "paligemma2_3b": "paligemma", "pixtral_12b": "pixtral", "qwen2_5_vl_7b": "qwen2_5_vl", "qwen2_vl_7b": "qwen2_vl",
    "qwen3_vl_8b": "qwen3_vl", "smolvlm2_2b": "smolvlm",
}  # fmt: skip
LANGUAGE_MODELS = {"language_model", "smollm2"}  # see tests/benchmarks/test_text.py


def test_the_documents_table_says_what_the_models_are() -> None:
    """Each row is a small model and the presets of its family; windows, directions and pieces are as it says."""
    page = (ROOT / "docs" / "reference" / "families.md").read_text()
    rows = [
        line.strip("|").split(" | ")
        for line in page.splitlines()
        if line.startswith("| `") and "backbone=`" not in line
    ]
    listed: list[str] = []
    presets: list[str] = []
    for names, kind, decoder, pieces, several in rows:
        (model_type,) = re.findall(r"`(\w+)`", kind)
        name = (re.findall(r"\((\w+)\)", kind) or [model_type])[0]
        family = family_of(model_type)
        listed.append(name)
        assert (pieces == "yes") == family.reads_in_pieces, kind
        assert several.strip() == ("yes, without tiles" if name in WITHOUT_TILES else "yes"), kind
        assert ("no adapter" in kind) == (not family.model_type), kind
        small = SMALL.get(name)
        assert ("both directions" in decoder) == bool(small and small.both_ways), kind
        presets += re.findall(r"`(\w+)`", names)
    assert sorted(listed) == sorted(NAMES)
    real = {name for name in choices("backbone") if not name.startswith("mini_")}
    assert set(presets) == real - LANGUAGE_MODELS
    assert set(PRESETS) == real - LANGUAGE_MODELS - {"hf"}
    assert set(FAMILIES) == set(NAMES) - set(UNKNOWN) - {"pixtral"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_checked_and_load_from_a_folder(name: str, tmp_path: Path) -> None:
    """Offline, from a folder in the hub's layout, with the preset's own settings for pictures."""
    kind = PRESETS[name]
    if kind in NEEDS and find_spec(NEEDS[kind]) is None:
        pytest.skip(f"{kind}'s processor needs {NEEDS[kind]}")
    values = {**choice("backbone", name), "source": str(write(kind, tmp_path / "folder")), "device": "cpu"}
    backbone = backbones.load(backbones.from_settings(values))
    assert backbone.model.config.model_type == {"pixtral": "llava"}.get(kind, kind)
    assert backbone.prompts.family.model_type


def test_any_model_needs_a_source() -> None:
    with pytest.raises(SettingError, match=r"backbone\.source = None: must name a model"):
        backbones.from_settings(choice("backbone", "hf"))


def test_the_guides_smallest_adapter_is_as_small_as_it_says() -> None:
    page = ROOT / "docs" / "guides" / "add-backbone.md"
    (smallest,) = (block for block in blocks(page) if block.title.endswith("/my_family.py"))
    assert "The smallest adapter has four lines of code" in page.read_text()
    assert sum(bool(line) for line in smallest.text.splitlines()) == 4
