"""`tdrs.study check` verifies every kept file; `tdrs.study prune` removes the records that no study uses.

`check` changes nothing. It reads each file with its checksum, computes metrics again from the rows, and compares what
studies say with the records they name. The study's own command repairs what `check`
finds: it measures again what is damaged, and nothing else.
"""

import json
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tdrs import benchmarks, checked_file
from tdrs.backbones.image_embeddings import EmbeddingStore
from tdrs.checked_file import ASIDE, Damaged
from tdrs.commands import command
from tdrs.evaluation import other_metrics
from tdrs.interventions import label
from tdrs.kept import Kept
from tdrs.records import Records, is_cache_key
from tdrs.results import Evaluation, mean_divergence
from tdrs.settings import SettingError, first_line
from tdrs.study_delete import claimed, named_in
from tdrs.sweeps.folder import read_outcome, studies_folder, study_folders
from tdrs.sweeps.sinks import journal_fault
from tdrs.sweeps.trial import COMPLETE, STOCK, Outcome, Trial, difference

KIB = 1024


class Fault(NamedTuple):
    """A file that is not as it was written, how it differs, and what would repair it."""

    path: Path
    what: str
    repair: str


def faults(output: Path) -> Iterator[Fault]:
    """Every fault of the files under an output folder."""
    records = Records(output / "records")
    folders = sorted(path for path in records.folder.glob("*"))
    for folder in tqdm(folders, desc="records", unit="record", disable=None, leave=False):
        if folder.is_symlink() or not folder.is_dir():
            yield Fault(folder, "is no folder of a record", "it is set aside where a study needs its name")
        elif is_cache_key(folder.name):
            yield from _of_record(records, folder.name)
        else:
            yield Fault(folder, "is no record: its name is not of 16 hexadecimal digits", "nothing uses it")
    for folder in study_folders(output):
        yield from _of_study(output, folder)
    kept = sorted((output / "features").glob("*/*.safetensors"))
    for path in tqdm(kept, desc="features", unit="picture", disable=None, leave=False):
        fault = EmbeddingStore(output / "features", 1, path.parent.name).fault(path)
        if fault:
            yield Fault(path, fault, "the picture is encoded again")
    for path in sorted(output.rglob("*")):
        if path.name.endswith(".partial"):
            yield Fault(path, "was left by a process that died while it wrote", "it can be removed")
        elif ASIDE in path.name:
            yield Fault(path, "was damaged and set aside", "it can be removed")


def _of_record(records: Records, cache_key: str) -> Iterator[Fault]:
    folder, again = records.path(cache_key), "it is measured again where a study asks for it"
    try:
        evaluation = records.read(cache_key)
    except FileNotFoundError:
        pass
    except Damaged as error:
        yield Fault(folder, str(error), again)
    else:
        what = _other_metrics(folder, evaluation)
        if what:
            yield Fault(folder / "result.json", what, again)
    lease = folder / "lease"
    if checked_file.is_no_file(lease):
        yield Fault(lease, "is no file", "it is set aside when the evaluation is measured")
    for path in (folder / "batches.jsonl", *sorted(folder.glob("shard-*/batches.jsonl"))):
        for what in checked_file.read_lines(path, cache_key)[1]:
            yield Fault(path, what, "its batches are asked again")
    try:
        checked_file.read_json(folder / "failed.json", cache_key)
    except FileNotFoundError:
        pass
    except Damaged as error:
        yield Fault(folder / "failed.json", str(error), "the evaluation is tried again")


def _other_metrics(folder: Path, evaluation: Evaluation) -> str:
    """How the metrics differ from what the benchmark makes of the rows; "" if they do not."""
    try:
        dataset = benchmarks.from_settings(checked_file.read_yaml(folder / "config.yaml")["dataset"])
    except (SettingError, Damaged, KeyError, TypeError):
        return ""
    return other_metrics(dataset, evaluation)


def _of_study(output: Path, folder: Path) -> Iterator[Fault]:
    again = "the study's own command repairs it"
    held = folder / "lock"
    if checked_file.is_no_file(held):
        yield Fault(held, "is no file", again)
    try:
        study = Kept(output, folder.name)
    except SettingError as error:
        yield Fault(folder, error.allowed, again)
        return
    try:
        what = journal_fault(folder, study.config)
    except SettingError as error:  # a configuration of another version
        what = str(error)
    if what:
        yield Fault(folder / "study.journal", what, "it is made again from the trials when the study runs")
    try:
        outcome = read_outcome(folder)
    except FileNotFoundError:
        return
    except SettingError as error:
        yield Fault(folder / "study.json", error.allowed, again)
        return
    for what in _of_outcome(study, outcome):
        yield Fault(folder / "study.json", what, again)


def _of_outcome(study: Kept, outcome: Outcome) -> Iterator[str]:
    """How a study's result contradicts its records."""
    if not outcome.overlap and any(row.budget for row in outcome.rows) and _shared(study, outcome):
        yield "says that no held-out sample is in the tuning split; its records have such samples"
    read = lru_cache(maxsize=4)(lambda cache_key: study.records.read(cache_key).records)  # the stock model's serve all
    stock: dict[tuple[str, str], Trial] = {}
    for trial in [*outcome.trials, *outcome.rows]:
        at = trial.split, json.dumps(trial.condition)
        if trial.status != COMPLETE:
            continue
        if trial.name == STOCK:
            stock[at] = trial
        kept = study.records.outline(trial.cache_key).get("metrics")
        if kept is None and trial not in outcome.rows:
            continue  # a tuning trial is measured again where the study asks for it
        if kept is None:
            yield f"names {trial.cache_key} ({trial.name}), which is not kept whole"
        elif kept != trial.metrics:
            yield f"has other metrics of {trial.name} than its record {trial.cache_key}"
        elif trial.difference or (trial in outcome.rows and trial.name != STOCK and at in stock):
            try:
                before, after = read(stock[at].cache_key), read(trial.cache_key)
                expected = difference(stock[at], trial, before, after)
            except (KeyError, FileNotFoundError, Damaged, SettingError) as error:
                yield f"has a difference of {trial.name} that cannot be computed again ({first_line(error)})"
                continue
            if trial.difference is None or not np.allclose(trial.difference, expected, rtol=0, atol=1e-12):
                yield f"has another difference of {trial.name} to the stock model than its records"
            elif trial.kl is not None and not np.isclose(trial.kl, mean_divergence(before, after), rtol=0, atol=1e-12):
                yield f"has another kl of {trial.name} to the stock model than its records"


def _shared(study: Kept, outcome: Outcome) -> bool:
    """Whether the records of both splits of a data set have a question about the same image."""
    seen: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for trial in [*outcome.trials, *outcome.rows]:
        if study.records.done(trial.cache_key):
            asked = seen.setdefault((outcome.named(trial.condition, "dataset"), trial.split), set())
            asked |= {(one.image_id, one.question) for one in study.records.read(trial.cache_key).records}
    return any(
        asked & seen.get((dataset, "held_out"), set()) for (dataset, split), asked in seen.items() if split == "tuning"
    )


def check(output: Path) -> int:
    """Print every fault and what would repair it; returns the exit code, 1 if there is one.

    Raises:
        SettingError: there is no such folder.
    """
    if not output.is_dir():
        raise SettingError("output", str(output), "must be the folder of kept studies; there is none")
    found = 0
    for fault in faults(output):
        found += 1
        print(f"{fault.path}: {fault.what}; {fault.repair}")
    count = sum(1 for _ in (output / "records").glob("*/result.json"))
    studies = sum(1 for _ in studies_folder(output).glob("*/config.yaml"))
    print(f"{count} finished evaluations and {studies} studies in {output}: {found or 'no'} fault{'s' * (found != 1)}")
    return 1 if found else 0


def prune(output: Path, yes: bool) -> int:
    """Remove records that no study names; without `yes` only say which, with their sizes. Returns the exit code.

    Raises:
        SettingError: a study is running, or its files cannot be read, so what it names is not known.
    """
    named: set[str] = set()
    folders = study_folders(output)
    if not studies_folder(output).exists():
        raise SettingError("output", str(output), "has no folder of studies, so what is used is not known")
    for folder in folders:
        named |= named_in(folder)
    records = Records(output / "records")
    unused = [path for path in sorted(records.folder.glob("*")) if is_cache_key(path.name) and path.name not in named]
    total = 0
    for path in unused:
        size = _size(path)
        total += size
        config = _settings(path)
        print(f"{path.name}  {size / KIB:8.1f} KiB  {config}")
        if yes and path.is_symlink():
            path.unlink()
        elif yes:
            with claimed(records, path.name):
                shutil.rmtree(path)
    print(f"{len(unused)} records that no study in {output} names, {total / KIB:.1f} KiB{' removed' if yes else ''}")
    if unused and not yes:
        print(
            f"nothing was removed; to do it:  {command('tdrs.study', 'prune', f'output={output.absolute()}', '--yes')}"
        )
    return 0


def _size(path: Path) -> int:
    return 0 if path.is_symlink() else sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def _settings(folder: Path) -> str:
    """What was evaluated, in words."""
    try:
        config = checked_file.read_yaml(folder / "config.yaml")
        return f"{config['backbone']['name']} {config['dataset']['name']} {label(config['intervention'])}"
    except (OSError, Damaged, KeyError, TypeError):
        return "unfinished"
