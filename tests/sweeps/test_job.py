"""Samples are loaded once for each model that may take other pictures, and shared by all that take the same."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tdrs.backbones import BackboneSettings
from tdrs.settings import SettingError
from tdrs.sweeps.job import Jobs
from tdrs.sweeps.trial import Request

from .pretend import configuration


def test_each_model_is_asked_which_pictures_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    row = {"image": ["red.png", "red.png"], "question": "Is it red?", "answer": "yes"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    given = [f"dataset.source={tmp_path / 'rows.jsonl'}", "dataset.rule=yes_no", "dataset.tuning_share=0"]
    jobs = Jobs(configuration(tmp_path, "dataset=own", *given))

    def accepts(self: BackboneSettings, sizes: object) -> str:
        return "it takes one" if self.name == "mini_llava_seed1" else ""

    monkeypatch.setattr(BackboneSettings, "accepts", accepts)

    def request(backbone: str, dtype: str = "auto") -> Request:
        condition = {"backbone": backbone, "backbone.dtype": dtype}
        return Request("stock", "held_out", {"intervention": "none"}, condition)

    first = jobs.of(request("mini_llava"))
    assert jobs.of(request("mini_llava", "bfloat16")).samples is first.samples
    assert jobs.of(request("mini_llava_seed2")).samples.content == first.samples.content
    with pytest.raises(SettingError, match=r"row 0 \(line 1\) has 2 images .*it takes one"):
        jobs.of(request("mini_llava_seed1"))
