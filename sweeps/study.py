"""A study: a protocol, run once, however often it is stopped.

The process that holds the folder's lock, and the storage's claim where machines share one, leads: it alone writes the
study's files and the store of runs (`sweeps/log.py`). Another one with the same command joins: it measures, and leads
when the first is gone or done.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from tqdm import tqdm

from tdrs.backbones.features import Features
from tdrs.configuration import check
from tdrs.environment import environment
from tdrs.evaluation import gib
from tdrs.lease import Lease
from tdrs.records import Records
from tdrs.settings import check_choice
from tdrs.stopping import Stop
from tdrs.tracking import Tracker

from .engine import WAIT, Engine, Preview
from .log import Log, describe, study_folder, study_key, tags
from .methods import check_effect
from .protocols import PROTOCOLS
from .ray_workers import RayEngine
from .shared import Shared
from .storage import JOURNAL, check_storage, check_study, open_storage
from .trials import Outcome, Trial


class Study:
    """One study.

    Args:
        config: the plain configuration of `conf/sweep.yaml`.
        tracker: where runs are logged.
        stop: whether somebody asked to stop.
        command: what was typed.

    Raises:
        SettingError: a setting, or a data set, is not to be had; nothing is loaded or written by then.
    """

    def __init__(self, config: dict[str, Any], tracker: Tracker, stop: Stop | None = None, command: str = "") -> None:
        check("sweep", config)
        self.config = config
        self.command = command
        self.name = str(config["study"]["name"])
        output = Path(config["output"])
        self.folder = study_folder(output, self.name)
        self.tracker = tracker
        check_choice("search.protocol", config["search"].get("protocol"), list(PROTOCOLS))
        self.protocol = PROTOCOLS[config["search"]["protocol"]]
        self.search = self.protocol.from_settings(config["search"])
        self.records, storage = self._open(config, output / "records")
        self.preview = Preview(config, self.records)
        dataset = config["dataset"]["name"]
        asked = [self.search.possible(condition, dataset) for condition in self.search.conditions()]
        check_effect(self.search.axes, [[self.preview.job(one).cache_key for one in some] for some in asked])
        self.protocol.run(self.search, self.preview, self.name)
        self.log = Log(self.folder, config, tracker, self.records, storage)
        features = Features(output / "features", gib(config["features_gib"]))
        kind = RayEngine if config["workers"]["name"] == "ray" else Engine
        self.engine = kind(config, self.records, features, stop, self._report, self.preview.samples)
        self._leads = False
        self._unlogged = False

    def _open(self, config: Mapping[str, Any], folder: Path) -> tuple[Records, BaseStorage | None]:
        """The records, and the storage through which machines share them, if there is one."""
        where = config["study"]["storage"]
        check_storage(where)
        if where == JOURNAL:
            return Records(folder), None
        storage, key = open_storage(where), study_key(config)
        check_study(storage, self.name, key)
        return Shared(folder, storage, f"{self.name} evaluations {key}"), storage

    def _report(self, trial: Trial) -> None:
        if not self._leads:
            return
        try:
            self.log.add(trial)
        except OSError as error:
            if not self._unlogged:
                print(f"the study's log cannot be written ({error}); measuring goes on", file=sys.stderr)
            self._unlogged = True

    def track(self, tracker: Tracker) -> None:
        """Log to another store of runs from here on."""
        self.tracker = self.log.tracker = tracker

    def dry_run(self) -> list[str]:
        """What would run, as lines of text."""
        preview = self.preview
        lines = [self.cost()]
        for job in preview.planned.values():
            lines.append(f"  {job.cache_key}  {job.request.split:9} n = {len(job.samples):<5} {job.request.label}")
        if self.config["search"]["protocol"] in ("coordinate", "sampled"):
            lines.append("later settings depend on earlier results: where those are missing, these are first guesses")
        return lines

    def cost(self) -> str:
        """How much there is to run, and how long that may take, in a line."""
        preview = self.preview
        planned = preview.planned.values()
        done = preview.asked - len(planned)
        text = f"{preview.asked} trials asked for, {done} found done or alike; to run: {len(planned)}"
        if not planned:
            return text
        text += f" of {sum(len(job.samples) for job in planned)} samples"
        seconds, unknown = preview.seconds()
        if unknown == len(planned):
            return f"{text}; no like evaluation is kept here to estimate by: see `tdrs.doctor`"
        text += f", {seconds / 60:.1f} minutes by like evaluations kept here"
        return f"{text} (none is like {unknown} of them)" if unknown else text

    def run(self) -> Outcome:
        """Run the study, go on with it, or join it; returns what its protocol found.

        Raises:
            KeyboardInterrupt: somebody asked to stop; the same command goes on.
        """
        with self._bar() as self.engine.bar, closing(self.engine):
            held = self._lead()
            if held is None:
                print(f"{self.name} is being run by another process; joining it", file=sys.stderr)
                self.protocol.run(self.search, self.engine, self.name)
            while held is None:
                self.engine.stop.check()
                time.sleep(WAIT)
                held = self._lead()
            with held:  # it goes with the process, however that ends
                self._leads = True
                return self._run()

    def _lead(self) -> ExitStack | None:
        """The right to write the study, until it is left; None while another process has it."""
        lease = Lease.take(self.folder, self.records.lease_seconds, "lock")
        if lease is None:
            return None
        with ExitStack() as stack:
            stack.enter_context(lease)
            checks = [lease.check]
            if isinstance(self.records, Shared):
                right = self.records.lead()
                if right is None:
                    return None
                stack.enter_context(right)
                checks.append(self.records.check_lead)
            self.log.checks = checks
            return stack.pop_all()

    def help(self) -> None:
        """Measure until nothing is left to measure; another process writes the study's files."""
        self.protocol.run(self.search, self.engine, self.name)

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        total = sum(len(job.samples) for job in self.preview.planned.values())
        self.engine.total = len(self.preview.planned)
        with tqdm(total=total, unit="sample", disable=None if total else True, dynamic_ncols=True) as bar:
            yield bar

    def _run(self) -> Outcome:
        self.log.open()
        surroundings = environment()
        about = {**tags(self.config), "commit": surroundings["commit"], "device": surroundings["device"]}
        with self.tracker.study(self.name, self.log.key, self.name, about) as self.log.parent:
            outcome = self.protocol.run(self.search, self.engine, self.name)
            tuned = any(row.budget for row in outcome.rows)
            overlap = self.engine.overlap if tuned else 0
            measured = _measured(self.records, outcome) or surroundings
            outcome = replace(outcome, key=self.log.key, command=self.command, environment=measured, overlap=overlap)
            self.log.check()
            outcome.save(self.folder / "study.json")
            self.log.finish()
            describe(self.tracker, self.log.parent, outcome, self.records)
        return outcome

    def attach(self, files: list[Path]) -> None:
        """Log files, such as figures, as artifacts of the study's run."""
        self.tracker.describe(
            self.log.parent, None, {}, [*files, self.folder / "study.json", self.folder / "config.yaml"]
        )


def _measured(records: Records, outcome: Outcome) -> dict[str, str]:
    """Where the records of a study were measured: where they differ, each value with the number of its evaluations."""
    done = [one for one in {t.cache_key for t in [*outcome.trials, *outcome.rows]} if records.done(one)]
    kept = [records.environment(cache_key) for cache_key in done]
    found: dict[str, str] = {}
    for name in dict.fromkeys(name for one in kept for name in one):
        counts = Counter(one.get(name, "unknown") for one in kept).most_common()
        shown = [f"{value} ({count} evaluations)" for value, count in sorted(counts, key=lambda c: (-c[1], c[0]))]
        found[name] = counts[0][0] if len(counts) == 1 else ", ".join(shown)
    return found
