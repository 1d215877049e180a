"""The gallery: one sample a picture, the prompt as the model gets it, a page for each benchmark."""

from pathlib import Path

import numpy as np
import pytest

from tdrs import benchmarks
from tdrs.analysis import gallery
from tdrs.backbones import Backbone
from tdrs.configuration import run


def test_cards(mini_llava: Backbone) -> None:
    benchmark = benchmarks.from_settings({"name": "mini_textvqa", "gap": 9})
    samples = benchmarks.load(benchmark, "tuning", 12)
    picked = gallery.pick(samples, 3)
    assert [sample.image_id for sample in picked] == ["tuning-0", "tuning-1", "tuning-2"]
    assert [sample.id for sample in picked] == ["0", "3", "4"]
    page = gallery.sample_cards("mini_textvqa", mini_llava, benchmark, picked)
    assert len(page.cards) == 3
    card = page.cards[0]
    assert np.array_equal(card.picture, np.asarray(picked[0].image))
    assert "[16 image tokens]" in card.prompt
    assert "<unk>" not in card.prompt
    assert card.prompt.endswith("ASSISTANT :")


def test_a_long_prompt_keeps_its_end() -> None:
    text = "\n".join(str(n) for n in range(100))
    shown = gallery._clip(text, 50, 12).split("\n")
    assert len(shown) == 12
    assert shown[3] == "[89 lines more]"
    assert shown[-1] == "99"
    assert gallery._clip("a\nb", 50, 12) == "a\nb"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["datasets=[mini_gqa,mini_pope]", "samples=3", f"output={tmp_path}"]
    assert run("gallery", gallery.main_gallery, "", arguments) == 0
    names = sorted(path.name for path in (tmp_path / "gallery").iterdir())
    assert names == ["gallery-mini_gqa.png", "gallery-mini_pope.png"]
    assert run("gallery", gallery.main_gallery, "", ["datasets=[vqa]"]) == 2
    assert "datasets = 'vqa': must be one of mini_scienceqa" in capsys.readouterr().err
