"""List, show, export, check and delete studies, and log what a store of runs lacks.

    python -m tdrs.study list                          # all of them
    python -m tdrs.study show sqa_ablation             # its trials and what it found
    python -m tdrs.study best sqa_ablation             # the best settings, as a command
    python -m tdrs.study export sqa_ablation           # trials.csv and samples.parquet
    python -m tdrs.study sync sqa_ablation             # write to Optuna and MLflow what is missing there
    python -m tdrs.study dashboard search              # its trials in Optuna's dashboard, on this machine
    python -m tdrs.study delete sqa_ablation --yes     # move it to outputs/trash; without --yes only list it
    python -m tdrs.study check                         # verify every kept file; print what repairs a damaged one
    python -m tdrs.study prune --yes                   # remove records that no study uses; without --yes list them

Give a name that begins with `-` or contains `=` as `study=NAME`. `output=FOLDER` is the folder of results, `outputs` by
default. `sync` and `delete` take `tracking.uri=ADDRESS`, `dashboard` takes `port=NUMBER`.
"""

import csv
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from tdrs.analysis import summary
from tdrs.commands import changes, command, parse, value
from tdrs.configuration import choice, choices, compose, plain, with_settings
from tdrs.entry_point import run_command
from tdrs.interventions import TOGETHER, together
from tdrs.kept import Kept
from tdrs.settings import SettingError, check_choice, folder_named
from tdrs.study_check import check, prune
from tdrs.study_dashboard import PORT, dashboard
from tdrs.study_delete import delete
from tdrs.sweeps import protocol
from tdrs.sweeps.folder import read_outcome, studies_folder
from tdrs.sweeps.sinks import sync
from tdrs.sweeps.trial import COMPLETE, FAILED, PRUNED, STOCK, Request, Trial, spelled
from tdrs.tracking import open_tracker


def _list(output: Path) -> int:
    names = sorted(path.parent.name for path in studies_folder(output).glob("*/config.yaml"))
    if not names:
        print(f"no study in {output}; the first:  {command('tdrs.sweep', '+experiment=sqa_ablation', *_at(output))}")
        return 0
    print(f"{'study':20}{'protocol':12}{'state':10}{'trials':>7}{'failed':>8}{'pruned':>8}  last change")
    for name in names:
        try:
            study = Kept(output, name)
        except SettingError as error:
            print(f"{name:20}{error.allowed}")
            continue
        protocol = study.config["search"]["protocol"]
        changed = max(path.lstat().st_mtime for path in study.folder.iterdir())
        counts = f"{len(study.trials):>7}{study.count(FAILED):>8}{study.count(PRUNED):>8}"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(changed))
        print(f"{study.name:20}{protocol:12}{study.state:10}{counts}  {when}")
    return 0


def _at(output: Path) -> list[str]:
    """The override that sets the output folder; empty for the default."""
    return [] if output == Path("outputs") else [f"output={value(str(output.absolute()))}"]


def _settings(trial: Trial) -> str:
    return spelled(trial.condition | (trial.settings if trial.name != STOCK else {}))


def _show(study: Kept) -> None:
    print(f"{study.name}: {study.config['search']['protocol']}, {study.state}, {len(study.trials)} trials")
    print(f"{'':>4} {'split':9} {'status':9} {'accuracy':>8} {'margin':>8}  name, settings; records")
    for number, trial in enumerate(study.trials):
        metrics = trial.metrics
        values = [f"{metrics[name]:8.3f}" if name in metrics else f"{'-':>8}" for name in ("accuracy", "margin")]
        text = f"{trial.name}: {_settings(trial)}" if _settings(trial) else trial.name
        print(f"{number:>4} {trial.split:9} {trial.status:9} {' '.join(values)}  {text}; {trial.cache_key}")
        if trial.reason:
            whole = "" if trial.expected is None else f", where all were expected to give {trial.expected:.3f}"
            print(f"{'':>35}{trial.reason}{whole}")
    if (study.folder / "study.json").exists():
        print()
        print("\n".join(summary.table(read_outcome(study.folder))))


def _best(study: Kept) -> None:
    """Print the settings chosen on the tuning split and the command that reports them; if stopped, the best so far."""
    if (study.folder / "study.json").exists():
        chosen = [row for row in read_outcome(study.folder).rows if row.budget]
    else:
        groups: dict[tuple[str, str], list[Trial]] = {}
        for trial in study.trials:
            if trial.split == "tuning" and trial.name != STOCK and trial.status == COMPLETE:
                groups.setdefault((trial.name, str(trial.condition)), []).append(trial)
        objective = protocol.from_settings(study.config["search"]).objective
        chosen = [protocol.best(trials, objective) for trials in groups.values()]
    if not chosen:
        print(f"{study.name} chose nothing: its settings were given")
    for trial in chosen:
        where = "held out" if trial.split == "held_out" else "on the tuning split, so far"
        print(f"{' '.join(filter(None, [trial.name, spelled(trial.condition)]))}: {trial.score:.3f} {where}")
        print(f"    {_command(study, trial)}")


def _command(study: Kept, trial: Trial) -> str:
    """The command that evaluates a trial's settings on the held-out split."""
    config = with_settings(study.config, Request("", "", trial.settings, trial.condition).merged)
    usual = plain(compose("evaluate", []))
    words = []
    for part in ("backbone", "dataset", "intervention"):
        given = dict(config[part])
        source = Path(given.get("source") or "").expanduser()
        if source.name and source.exists():
            given["source"] = str(source.absolute())
        known = choices(part)  # the name of a choice, unless another name was given
        name = given["name"] if given["name"] in known else usual[part]["name"]
        chosen = choice(part, name)
        if name == TOGETHER:
            name, chosen = value(given["methods"]), together(given["methods"], partial(choice, part))
        words += [f"{part}={name}", *changes(part, given, chosen)]
    words += [f"limit={value(config['preset']['held_out'])}", f"batch_size={config['batch_size']}"]
    words += [f"batch_tokens={config['batch_tokens']}"] if config.get("batch_tokens") else []
    words += changes("attention", config["attention"], usual["attention"])
    return command("tdrs.evaluate", *words, f"output={value(str(study.output.absolute()))}")


def _cell(given: Any) -> str:
    """A setting as the text of a cell. Values other than texts are JSON, so that null differs from an unset value."""
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def _export(study: Kept) -> int:
    folder = study.folder / "export"
    folder.mkdir(exist_ok=True)
    metrics = sorted({name for trial in study.trials for name in trial.metrics})
    keys = sorted({key for trial in study.trials for key in {**trial.condition, **trial.settings}})
    with (folder / "trials.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        head = ["study_key", "number", "name", "split", "status", "reason", "cache_key", "n", "seconds"]
        writer.writerow([*head, *keys, *metrics])
        for number, t in enumerate(study.trials):
            given = {**t.condition, **t.settings}
            row = [study.key, number, t.name, t.split, t.status, t.reason, t.cache_key, t.n, f"{t.seconds:.3f}"]
            texts = [_cell(given[key]) if key in given else "" for key in keys]
            writer.writerow([*row, *texts, *(t.metrics.get(m, "") for m in metrics)])
    path = folder / "samples.parquet"
    path.unlink(missing_ok=True)
    writer_: pq.ParquetWriter | None = None
    complete = dict.fromkeys(trial.cache_key for trial in study.trials if trial.status == COMPLETE)
    missing = []
    for cache_key in tqdm(complete, desc="samples", unit="trial", disable=None, leave=False):
        if not study.records.done(cache_key):
            missing.append(cache_key)
        else:
            table = pq.read_table(study.records.path(cache_key) / "samples.parquet")
            table = table.append_column("cache_key", pa.array([cache_key] * len(table)))
            table = table.replace_schema_metadata({"study": study.name, "study_key": study.key})
            writer_ = writer_ or pq.ParquetWriter(path, table.schema)
            writer_.write_table(table)
    if writer_:
        writer_.close()
    print(folder / "trials.csv")
    if writer_:
        print(f"{path}   (joins trials.csv by cache_key)")
    for cache_key in missing:
        text = "its records are missing or damaged, so its samples are not exported; run the study again"
        print(f"{cache_key}: {text}", file=sys.stderr)
    return 1 if missing else 0


def _sync(study: Kept, tracking: dict[str, Any]) -> int:
    if study.running:
        raise SettingError("study", study.name, "is running, and logs by itself")
    with open_tracker(tracking, study.output, repair=True) as tracker:
        count = sync(study.folder, tracker, study.records, summary.description)
        if tracker.down:
            print("\n".join(tracker.later(study.name)), file=sys.stderr)
            return 1
        print(f"{count} trials of {study.name} are in Optuna and MLflow")
        print("\n".join(tracker.next_steps(study.name)))
    return 0


VERBS = ("list", "show", "best", "export", "sync", "dashboard", "delete", "check", "prune")


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit code: 2 for bad arguments."""
    bare, given = parse(arguments)
    words = [word for word in bare if not word.startswith("-")]
    name = given.pop("study", None)
    words += [] if name is None else [name]
    if "--help" in arguments or "-h" in arguments or not words:
        print((__doc__ or "").strip())
        return 0 if words or "--help" in arguments or "-h" in arguments else 2
    try:
        check_choice("verb", words[0], VERBS)
        for word in arguments:
            if word.startswith("-") and word != "--yes":
                raise SettingError("option", word, "must be --yes; a study whose name begins so is study=NAME")
        for key in given:
            check_choice("option", key, ("study", "output", "port" if words[0] == "dashboard" else "tracking.uri"))
        output = folder_named("output", given.get("output", "outputs"))
        if output.exists() and not output.is_dir():
            raise SettingError("output", str(output), "must be a folder")
        whole: dict[str, Callable[[], int]] = {
            "list": lambda: _list(output),
            "check": lambda: check(output),
            "prune": lambda: prune(output, "--yes" in arguments),
        }
        if words[0] in whole:
            if len(words) > 1:
                raise SettingError("study", " ".join(words[1:]), f"{words[0]} takes no name: it looks at all studies")
            return whole[words[0]]()
        if len(words) != 2:
            raise SettingError("study", " ".join(words[1:]), f"{words[0]} takes the name of one study")
        study = Kept(output, words[1])
        tracking = dict(study.config["tracking"])
        nowhere = words[0] == "delete" and not (output / "mlflow.db").exists()  # no run was ever logged there
        if "tracking.uri" in given or (tracking["name"] == "none" and not nowhere):
            uri = given.get("tracking.uri")
            tracking = {"name": "mlflow", "uri": None if uri == "null" else uri}
        verbs: dict[str, Callable[[], int | None]] = {
            "show": lambda: _show(study),
            "best": lambda: _best(study),
            "export": lambda: _export(study),
            "dashboard": lambda: dashboard(study, given.get("port", PORT)),
            "delete": lambda: delete(study, "--yes" in arguments, tracking),
            "sync": lambda: _sync(study, tracking),
        }
        return verbs[words[0]]() or 0
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
