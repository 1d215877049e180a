"""A finished study as pandas data frames: its trials, its samples, and paired comparisons of its rows.

study = tdrs.load_study("sqa_ablation")
study.compare("logits, tuned", baseline="logits, paper")
"""

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from tdrs import __version__
from tdrs.analysis import answer_bias, summary
from tdrs.analysis.evidence import Evidence, clamped_lines, compare_rows, condition_name
from tdrs.records import Records
from tdrs.settings import SettingError, check_choice, folder_named
from tdrs.statistics import Interval
from tdrs.sweeps.folder import read_outcome, studies_folder, study_folder
from tdrs.sweeps.trial import COMPLETE, STOCK, Outcome, Trial

INTERVALS = ("", "_low", "_high")


class StudyResults:
    """What a finished study found. All of it is read from the study's folder; no model is loaded.

    Shares and differences are from −1 to 1, as in `study.json`; the report's tables show the same numbers in per cent.

    Attributes:
        name: the study's name.
        rows: the names of its held-out rows; the stock model's is `stock`.
        conditions: what each row was measured under, in words.
        warning: what a reader must know before any number; "" if there is nothing.
        outcome: all of `study.json`.
        records: the store of its evaluations.
        folder: where the study is kept.
    """

    def __init__(self, outcome: Outcome, records: Records, folder: Path) -> None:
        self.outcome = outcome
        self.records = records
        self.folder = folder
        self.name = outcome.name
        self.rows = list(dict.fromkeys(row.name for row in outcome.rows))
        self.conditions = list(dict.fromkeys(condition_name(outcome, row.condition) for row in outcome.rows))
        self.warning = outcome.warning
        self._evidence: dict[str, list[Evidence]] = {}
        self._controls: dict[str, answer_bias.Control] | None = None

    def __repr__(self) -> str:
        return "\n".join([f"study {self.name}", *summary.table(self.outcome), *self.notes])

    @property
    def controls(self) -> dict[str, answer_bias.Control]:
        """The control for yes/no questions of each condition, by the condition's words; see `analysis.answer_bias`."""
        if self._controls is None:
            self._controls = answer_bias.controls(self.outcome, self.records)
        return self._controls

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers should know: clamped settings, and how the samples were read and drawn."""
        notes = dict.fromkeys(note for row in self.outcome.rows for note in row.notes)
        return [*clamped_lines(self.outcome), *notes]

    def trials(self) -> pd.DataFrame:
        """All trials: those on the tuning split first, then the held-out rows.

        The index numbers the trials. Columns: `name`, `split`, `status`
        (`complete`, `pruned` or `failed`), `reason`; `backbone`, `dataset` and a column for each other key that an
        axis or the trial sets; `n`; each metric, accuracy with `accuracy_low` and `accuracy_high`, its 95 % interval;
        the paired `difference` to the stock model with its interval; `kl`, the mean divergence of the first token's
        distribution from the stock model's, in nats (nan if it was not measured beside it); `tuning_trials`, the number
        of trials that a row's settings were chosen from; `seconds`; `cache_key`, the name of the evaluation's records.

        The metrics of a pruned trial are those of the samples it saw.
        """
        trials = self._numbered
        keys = dict.fromkeys(key for trial in trials for key in {**trial.condition, **trial.settings})
        metrics = dict.fromkeys(name for trial in trials for name in trial.metrics)
        frame = pd.DataFrame(
            {
                "name": [trial.name for trial in trials],
                "split": [trial.split for trial in trials],
                "status": [trial.status for trial in trials],
                "reason": [trial.reason for trial in trials],
                **self._conditions(trials),
            }
        )
        for key in keys:
            if key not in frame:
                frame[key] = _column([{**trial.condition, **trial.settings} for trial in trials], key)
        frame["n"] = [trial.n for trial in trials]
        for name in metrics:
            frame[name] = [trial.metrics.get(name, float("nan")) for trial in trials]
        for number, end in enumerate(INTERVALS):
            frame[f"difference{end}"] = [t.difference[number] if t.difference else float("nan") for t in trials]
        frame["kl"] = [float("nan") if trial.kl is None else trial.kl for trial in trials]
        frame["tuning_trials"] = [trial.budget for trial in trials]
        frame["seconds"] = [trial.seconds for trial in trials]
        frame["cache_key"] = [trial.cache_key for trial in trials]
        return self._labelled(frame)

    def samples(self) -> pd.DataFrame:
        """One row for each sample and complete trial.

        Columns: `trial`, the index in `trials()`; its `name` and `split`; `backbone`, `dataset` and the other keys of
        the axes; then the record: `id`, `image_id`, `question`, `prediction`, `answer` (what the scoring rule read),
        `gold`, `score` (0 to 1), `margin` (log-odds of the gold answer, in nats), `categories`, `weight`, `found` and
        `first_token` (see `tdrs.benchmarks.Record`).

        Raises:
            FileNotFoundError, Damaged: the records of a trial are missing or damaged.
        """
        parts: dict[str, pd.DataFrame] = {}
        frames = []
        for number, trial in enumerate(self._numbered):
            if trial.status != COMPLETE:
                continue
            if trial.cache_key not in parts:
                parts[trial.cache_key] = pd.DataFrame(map(asdict, self.records.read(trial.cache_key).records))
            frame = parts[trial.cache_key].copy()
            about = {"trial": number, "name": trial.name, "split": trial.split}
            about |= {key: values[0] for key, values in self._conditions([trial]).items()}
            for position, (key, value) in enumerate(about.items()):
                frame.insert(position, key, value)
            frames.append(frame)
        return self._labelled(pd.concat(frames, ignore_index=True) if frames else pd.DataFrame())

    def compare(self, method: str | None = None, baseline: str = STOCK) -> pd.DataFrame:
        """Compare a row with a baseline on the held-out split, sample by sample, a line for each condition.

        The same statistics as in the report: images are clusters; `difference` is the method's accuracy minus the
        baseline's, with a 95 % bootstrap interval; `p` is of the sign-flip test, `p_holm` after Holm's correction for
        `comparisons`, the number of rows of this study that have this baseline. `gained` and `lost` count the samples
        whose score rises or falls, with McNemar's exact `mcnemar_p`, if all scores are 0 or 1. `smallest` is the
        difference that such a comparison shows four times in five. `verdict` is in words. Questions of yes and no have
        more lines, with the measures `F1`, `balanced accuracy` and `ROC area`, which have an interval and no test.
        Beside the stock model they also have the control without a model of `tdrs.analysis.answer_bias`: the row
        `answer bias, tuned`, and for each method the stock model at the method's yes-rate. A row that failed has nan,
        and the reason as its verdict.

        Args:
            method: one of `rows`; None compares every row.
            baseline: one of `rows`.

        Raises:
            SettingError: no such row, or the method is the baseline.
            FileNotFoundError, Damaged: the records of a row are missing or damaged.
        """
        check_choice("baseline", baseline, self.rows)
        if method is not None:
            check_choice("method", method, self.rows)
            if method == baseline:
                others = ", ".join(name for name in self.rows if name != baseline)
                raise SettingError("method", method, f"is the baseline; must be one of {others or 'no other row'}")
        if self.warning:
            warnings.warn(self.warning, stacklevel=2)
        if baseline not in self._evidence:
            self._evidence[baseline] = compare_rows(self.outcome, self.records, baseline)
        found = {id(one.trial): one for one in self._evidence[baseline]}
        controls = self.controls if baseline == STOCK else {}
        comparisons = sum(one.difference is not None for one in found.values())
        lines: list[dict[str, Any]] = []
        for row in self.outcome.rows:
            condition = condition_name(self.outcome, row.condition)
            control = controls.get(condition)
            about: dict[str, Any] = {"condition": condition}
            about |= {key: values[0] for key, values in self._conditions([row]).items()}
            about |= {"method": row.name, "baseline": baseline, "n": row.n, "tuning_trials": row.budget}
            if row.name == baseline and control and method is None:
                lines += _bias_lines(about | {"method": answer_bias.NAME, "tuning_trials": 0}, control)
            if row.name == baseline or method not in (None, row.name):
                continue
            one = found.get(id(row))
            if one is None:
                lines.append(about | measure_columns("accuracy") | {"verdict": f"{row.status}: {row.reason}"})
                continue
            tests = test_columns(one, comparisons) if one.difference else {"verdict": "its baseline was not measured"}
            lines.append(about | measure_columns("accuracy", one.accuracy, one.difference) | tests)
            for measure, value in one.measures.items():
                lines.append(about | measure_columns(measure, value, one.differences.get(measure)))
            for read in answer_bias.readings(controls, condition, row.name):
                lines.append(about | measure_columns(read.name, read.accuracy, read.difference))
        return self._labelled(pd.DataFrame(lines))

    @property
    def _numbered(self) -> list[Trial]:
        """Trials in the order of `trials()`, each once although a protocol may ask for it again."""
        return list({trial.key: trial for trial in [*self.outcome.trials, *self.outcome.rows]}.values())

    def _conditions(self, trials: Sequence[Trial]) -> dict[str, list[Any]]:
        """Columns that tell conditions apart: backbone, data set, and the other keys of the axes."""
        columns = {group: [self.outcome.named(t.condition, group) for t in trials] for group in ("backbone", "dataset")}
        others = dict.fromkeys(key for trial in self._numbered for key in trial.condition if key not in columns)
        return columns | {key: _column([trial.condition for trial in trials], key) for key in others}

    def _labelled(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with what it belongs to in its `attrs`: study, key, and a warning if there is one."""
        frame.attrs |= {"study": self.name, "study_key": self.outcome.key}
        frame.attrs |= {"warning": self.warning} if self.warning else {}
        return frame


def _bias_lines(about: dict[str, Any], control: answer_bias.Control) -> list[dict[str, Any]]:
    """The lines of the tuned bias; none if it is missing."""
    if control.accuracy is None or control.paired is None:
        return []
    gained, lost, p = control.paired.discordant or (None, None, float("nan"))
    tests = {"gained": gained, "lost": lost, "mcnemar_p": p, "verdict": ""}
    lines = [about | measure_columns("accuracy", control.accuracy, control.paired.difference) | tests]
    changes = control.paired.differences
    return lines + [about | measure_columns(name, one, changes[name]) for name, one in control.measures.items()]


def _column(settings: Sequence[Mapping[str, Any]], key: str) -> pd.Series:
    """One setting of several trials: nan where a trial does not set it, which is not the same as None."""
    values = [given.get(key, float("nan")) for given in settings]
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return pd.Series(values) if plain else pd.Series(values, dtype=object)


def measure_columns(measure: str, value: Interval | None = None, difference: Interval | None = None) -> dict[str, Any]:
    """A measure and a paired difference, each with its limits; nan where there is none."""
    nothing = Interval(*[float("nan")] * 3)
    value, difference = value or nothing, difference or nothing
    columns: dict[str, Any] = {"measure": measure, "value": value.value, "low": value.low, "high": value.high}
    names = ("difference", "difference_low", "difference_high")
    return columns | dict(zip(names, difference, strict=True))


def test_columns(one: Evidence, comparisons: int) -> dict[str, Any]:
    """What the tests say of a row."""
    gained, lost, p = one.discordant or (None, None, float("nan"))
    columns = {"p": one.p, "p_holm": one.p_holm, "comparisons": comparisons, "gained": gained, "lost": lost}
    return columns | {"mcnemar_p": p, "smallest": one.smallest, "verdict": one.verdict}


def load_study(name: str | None, output: str | Path = "outputs") -> StudyResults:
    """Read a finished study from its folder, `OUTPUT/studies/NAME`. No model is loaded and nothing is written.

    Raises:
        SettingError: no finished study has this name, or its files are damaged.
    """
    place = folder_named("output", output)
    folder = study_folder(place, name) if name is not None else None
    if folder and (folder / "config.yaml").exists() and not (folder / "study.json").exists():
        raise SettingError("study", name, f"in {place} has not finished; run it again, and it continues")
    if folder is None or not (folder / "study.json").exists():
        known = sorted(path.parent.name for path in studies_folder(place).glob("*/study.json"))
        raise SettingError("study", name, f"must be a finished study: {', '.join(known) or 'none yet'}")
    outcome = read_outcome(folder)
    version = outcome.environment.get("tdrs", "of an unknown version")
    if version != __version__:
        print(f"this study was measured by tdrs {version}; this is tdrs {__version__}", file=sys.stderr)
    return StudyResults(outcome, Records(place / "records"), folder)
