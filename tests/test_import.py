"""Importing tdrs changes nothing that other code would notice: not the plot backend, the logs or the threads."""

import json
import subprocess
import sys

# What the libraries below set when they are imported is theirs. Everything is compared after that.
PROGRAM = """
import importlib, json, locale, logging, os, pkgutil, signal, sys, warnings
import alembic, datasets, hydra, matplotlib.pyplot, mlflow, mlflow.store.db.utils, numpy, optuna, optuna.storages
import PIL.Image, pyarrow, torch, torch.nn.attention.flex_attention, transformers
import mlflow.tracking, huggingface_hub, sqlalchemy
from transformers import AutoModelForImageTextToText, AutoProcessor


def state():
    names = ["", "optuna", "mlflow", "mlflow.store.db.utils", "alembic", "transformers", "datasets", "matplotlib"]
    return {
        "backend": matplotlib.get_backend(),
        "figures": dict(matplotlib.rcParams.items()).__repr__(),
        "levels": {name: logging.getLogger(name).level for name in names},
        "handlers": {name: len(logging.getLogger(name).handlers) for name in names},
        "optuna": optuna.logging.get_verbosity(),
        "transformers": transformers.utils.logging.get_verbosity(),
        "bars": datasets.utils.logging.is_progress_bar_enabled() if hasattr(
            datasets.utils.logging, "is_progress_bar_enabled") else None,
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch": [str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.get_float32_matmul_precision(),
                  torch.are_deterministic_algorithms_enabled()],
        "random": [torch.get_rng_state().sum().item(), int(numpy.random.get_state()[1].sum())],
        "numpy": repr(numpy.geterr()),
        "environment": dict(os.environ),
        "warnings": [repr(one) for one in warnings.filters],
        "signals": [repr(signal.getsignal(one)) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
        "streams": [id(sys.stdin), id(sys.stdout), id(sys.stderr)],
        "hooks": [repr(sys.excepthook), repr(sys.displayhook)],
        "folder": os.getcwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "pixels": PIL.Image.MAX_IMAGE_PIXELS,
        "path": list(sys.path),
    }


before = state()
import tdrs
found = []
for package in ("tdrs", "tdrs.sweeps", "tdrs.analysis"):
    folder = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(folder, f"{package}."):
        if module.name == "tdrs.lmms_eval_model":  # lmms-eval alone imports it; that library sets filters of warnings
            continue
        importlib.import_module(module.name)
        found.append(module.name)
after = state()
changed = {name: [before[name], after[name]] for name in before if before[name] != after[name]}
print(json.dumps([len(found), changed]))
"""


def test_importing_every_module_changes_no_global_state() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, changed = json.loads(done.stdout.splitlines()[-1])
    assert count > 60
    assert changed == {}
