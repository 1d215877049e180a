"""Records belong to the files that were loaded, also if somebody replaces a model's files while a study runs."""

import json
import shutil
from pathlib import Path

import pytest

from tdrs.backbones.backbone_settings import EMBEDDED
from tdrs.records import Records
from tdrs.settings import SettingError
from tdrs.stopping import Stop
from tdrs.sweeps.executor import Inline, Progress
from tdrs.sweeps.job import Job, Jobs, Results
from tdrs.sweeps.store import Store
from tdrs.sweeps.trial import COMPLETE, Request

from . import pretend
from .pretend import configuration


def replaced(folder: Path, temperature: float) -> None:
    """Another version of a file that is part of the model's fingerprint."""
    (folder / "generation_config.json").write_text(json.dumps({"temperature": temperature}))


def test_a_kept_model_is_loaded_again_and_no_record_gets_another_models_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = pretend.pretend(monkeypatch)
    folder = Path(shutil.copytree(EMBEDDED / "mini_llava", tmp_path / "model"))
    config = configuration(tmp_path, f"backbone.source={folder}")
    results = Results(Store(Records(tmp_path / "records")), 0)
    executor = Inline(results, Progress(), Stop(), None)

    def job(tau: float) -> Job:
        settings = {"intervention": "temperature", "intervention.tau": tau}
        return Jobs(config).of(Request("sharper", "held_out", settings))

    def status(one: Job) -> str:
        trial = executor.run(one)
        assert trial is not None
        return trial.status

    assert [status(job(0.5)), status(job(0.6))] == [COMPLETE] * 2
    assert len(loaded) == 1
    planned = job(0.7)
    replaced(folder, 0.3)
    with pytest.raises(SettingError, match=r"^backbone.source = .*model': its files, .* run the command again$"):
        executor.run(planned)
    assert not results.store.records.done(planned.cache_key)
    again = job(0.7)
    assert again.cache_key != planned.cache_key
    assert status(again) == COMPLETE
    assert len(loaded) == 2
    replaced(folder, 0.4)
    assert status(job(0.7)) == COMPLETE
    assert len(loaded) == 3
