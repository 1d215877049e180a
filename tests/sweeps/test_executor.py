"""Helpers: what starts one, what it is given, and what is said where a setting is not allowed."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tdrs.configuration import run
from tdrs.settings import SettingError
from tdrs.sweep import main_sweep
from tdrs.sweeps.study import Study
from tdrs.worker_pool import WorkerPool

from .pretend import configuration


def test_a_worker_is_given_the_study_without_its_tracking(tmp_path: Path) -> None:
    config: dict[str, Any] = configuration(tmp_path, "workers=processes", "workers.count=3")
    pool = Study(config)._pool
    assert pool.count == 3
    assert pool.command == [sys.executable, "-m", "tdrs.sweep", "--worker", str(tmp_path / "studies" / "small")]
    given = json.loads(pool._given)
    assert given == {**config, "workers": {"name": "inline"}, "tracking": {"name": "none"}}
    assert pool.devices == []


def test_cores_are_divided_and_given_back(tmp_path: Path) -> None:
    said = "import os, sys; print(os.environ['OMP_NUM_THREADS'], os.environ.get('CUDA_VISIBLE_DEVICES'))"
    before = torch.get_num_threads()
    with WorkerPool(2, [sys.executable, "-c", said], b"", tmp_path) as pool:
        assert torch.get_num_threads() == max(1, before // 2)
        pool.processes[0].wait()
    assert torch.get_num_threads() == before
    assert (tmp_path / "worker-1.log").read_text().split()[0] == str(max(1, before // 2))


def test_each_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    with WorkerPool(3, [sys.executable, "-c", said], b"", tmp_path, ["4", "6", "7"]) as pool:
        for process in pool.processes:
            process.wait()
    assert [(tmp_path / f"worker-{n}.log").read_text().strip() for n in (1, 2)] == ["6", "7"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with pytest.raises(SettingError, match=r"workers.count = 3: must be at most 2, the GPUs there are"):
        Study(configuration(tmp_path, "backbone.device=auto", "workers=processes", "workers.count=3"))


def test_one_that_fails_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with WorkerPool(2, [sys.executable, "-c", "raise SystemExit(3)"], b"", tmp_path) as pool:
        pool.processes[0].wait()
    assert "worker 1 failed, the others did its share" in capsys.readouterr().err


def test_bad_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ["preset=smoke", "workers=processes", "workers.count=0", f"output={tmp_path}", "tracking=none"]
    assert run("sweep", main_sweep, "", given) == 2
    assert "workers.count = 0: must be a whole number from 1 to 1024" in capsys.readouterr().err
