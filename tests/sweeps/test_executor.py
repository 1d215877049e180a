"""Helpers: what starts one, what it is given, and what is said where a setting is not allowed."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tdrs.sweeps.executor import WorkerPool

from tdrs.configuration import compose, plain, run
from tdrs.settings import SettingError
from tdrs.sweep import main_sweep


def config(*overrides: str) -> dict[str, Any]:
    values: dict[str, Any] = plain(compose("sweep", ["workers=processes", *overrides]))
    return values


def test_a_helper_is_the_same_command_without_the_files(tmp_path: Path) -> None:
    given = ["+experiment=peers", "workers=processes", "workers.count=3"]
    pool = WorkerPool.of(config("workers.count=3"), given, tmp_path)
    assert pool.count == 3
    assert pool.command == [sys.executable, "-m", "tdrs.sweep", "+experiment=peers", "workers=member", "tracking=none"]
    assert pool.devices == []


def test_cores_are_divided_and_given_back(tmp_path: Path) -> None:
    said = "import os, sys; print(os.environ['OMP_NUM_THREADS'], os.environ.get('CUDA_VISIBLE_DEVICES'))"
    before = torch.get_num_threads()
    with WorkerPool(2, [sys.executable, "-c", said], tmp_path, []) as pool:
        assert torch.get_num_threads() == max(1, before // 2)
        pool.processes[0].wait()
    assert torch.get_num_threads() == before
    assert (tmp_path / "worker-1.log").read_text().split()[0] == str(max(1, before // 2))


def test_each_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    with WorkerPool(3, [sys.executable, "-c", said], tmp_path, ["4", "6", "7"]) as pool:
        for process in pool.processes:
            process.wait()
    assert [(tmp_path / f"worker-{n}.log").read_text().strip() for n in (1, 2)] == ["6", "7"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with pytest.raises(SettingError, match=r"workers.count = 3: must be at most 2, the GPUs there are"):
        WorkerPool.of(config("backbone.device=auto", "workers.count=3"), [], tmp_path)


def test_one_that_fails_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with WorkerPool(2, [sys.executable, "-c", "raise SystemExit(3)"], tmp_path, []) as pool:
        pool.processes[0].wait()
    assert "worker 1 failed, the others did its share" in capsys.readouterr().err


def test_bad_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    given = ["preset=smoke", "workers=processes", "workers.count=0", f"output={tmp_path}", "tracking=none"]
    assert run("sweep", main_sweep, "", given) == 2
    assert "workers.count = 0: must be a whole number from 1 to 1024" in capsys.readouterr().err
