"""`tdrs.study dashboard` shows a study's trials in Optuna's dashboard, also while the study runs.

The dashboard is given a view of the study's storage, not the storage: it reads the trials anew whenever it asks for
them, marks pruned ones as pruned, and cannot write. In the storage pruned trials are complete, because samplers learn
from their expected value.
"""

import copy
import logging
import socketserver
import sys
import warnings
from collections.abc import Callable, Container, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tdrs.addresses import JOURNAL
from tdrs.environment import quiet
from tdrs.kept import Kept
from tdrs.settings import SettingError, check_number, first_line
from tdrs.sweeps import protocol
from tdrs.sweeps.folder import TRIALS, read_outcome, read_trials
from tdrs.sweeps.storage import load_optuna, open_storage
from tdrs.sweeps.tradeoff import Tradeoff
from tdrs.sweeps.trial import Trial

HOST, PORT = "127.0.0.1", 8080


def shown(trial: FrozenTrial, known: Trial | None, objective: str) -> FrozenTrial:
    """A stored trial as the dashboard shows it: a pruned one as pruned, with its mean over the samples it saw.

    Args:
        known: the same trial in `trials.jsonl`, which has the number of samples; None if it is not there.
    """
    found = copy.copy(trial)
    if known is None or not known.metrics:
        steps = {} if trial.value is None else {0: trial.value}
    else:
        steps = {known.n: known.metrics[objective]}
        found.user_attrs = {**trial.user_attrs, "samples": known.n}
    if known is not None and known.finished:
        found.datetime_start = datetime.fromtimestamp(known.finished - known.seconds)
        found.datetime_complete = datetime.fromtimestamp(known.finished)
    found.intermediate_values = steps
    if trial.user_attrs.get("pruned"):
        found.state = TrialState.PRUNED
    return found


class View(InMemoryStorage):
    """A storage of one study whose trials are read when they are asked for.

    Args:
        name: the study's.
        objectives: the direction of what is searched for, by its name; a study of several objectives has several.
        read: gives the trials.

    Attributes:
        study: the number of the study in this storage.
    """

    def __init__(
        self, name: str, objectives: Mapping[str, StudyDirection], read: Callable[[], list[FrozenTrial]]
    ) -> None:
        super().__init__()
        self._read = read
        with quiet("optuna"):
            self.study = self.create_new_study(list(objectives.values()), name)
        self.set_study_system_attr(
            self.study, "study:metric_names", list(objectives)
        )  # as `Study.set_metric_names` does

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = self._read()
        return trials if states is None else [trial for trial in trials if trial.state in states]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return next(trial for trial in self._read() if trial._trial_id == trial_id)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return BaseStorage.get_best_trial(self, study_id)  # the other one knows only trials that were written here


def view(study: Kept) -> View:
    """A view of a study's storage.

    Raises:
        SettingError: the study has no trials there, or the storage cannot be read.
    """
    search = protocol.from_settings(study.config["search"])
    storage = open_storage(str(study.config["study"].get("storage", JOURNAL)))
    journal = study.folder / "study.journal"

    @lru_cache(maxsize=1)
    def known(_state: tuple[int, ...]) -> Mapping[str, Trial]:
        return read_trials(study.folder, study.key)

    @lru_cache(maxsize=1)
    def opened(_state: tuple[int, ...]) -> optuna.Study:
        return load_optuna(storage or study.folder, study.name)

    def read() -> list[FrozenTrial]:
        # a journal that was moved away and made again is another file
        trials = opened(_state(journal)[:1]).get_trials(deepcopy=False)
        lines = known(_state(study.folder / TRIALS))
        return [shown(trial, lines.get(trial.user_attrs.get("key", "")), search.objective) for trial in trials]

    if storage is None and not journal.exists():
        raise SettingError("study", study.name, "has no trials on the tuning split yet: nothing was logged to Optuna")
    try:
        found = opened(_state(journal)[:1])
        read()
    except Exception as error:  # a missing study, or whatever a damaged file makes the library raise
        raise SettingError("study", study.name, f"its trials cannot be read ({first_line(error)})") from None
    if isinstance(search, Tradeoff) and (study.folder / "study.json").exists():
        return _points(study, search)
    return View(study.name, {search.objective: found.direction}, read)


def _points(study: Kept, search: Tradeoff) -> View:
    """A view of a finished study of several objectives: one trial a point, with a value for each objective.

    The storage has a trial for each evaluation, so that a study can go on; a point is measured at several conditions.
    """
    trials = []
    for number, (row, settings, values) in enumerate(search.valued(read_outcome(study.folder))):
        assert row.space is not None
        params = {"method": row.name, **(row.space.params(settings) or {})}
        distributions = {"method": CategoricalDistribution(list(search.methods)), **row.space.distributions()}
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        found = create_trial(state=state, values=values, params=params, distributions=distributions)
        found.number = found._trial_id = number
        trials.append(found)
    directions = {str(one): StudyDirection[one.direction.upper()] for one in search.parsed}
    return View(study.name, directions, lambda: trials)


def _state(path: Path) -> tuple[int, ...]:
    """What changes with a file; empty without one."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each request would hide the address."""


def _application(storage: BaseStorage) -> Any:
    """The dashboard, which may only be read.

    Raises:
        SettingError: the package is missing.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise SettingError("verb", "dashboard", "needs one more package: pip install optuna-dashboard") from None
    logging.getLogger("optuna_dashboard").setLevel(logging.ERROR)
    dashboard = wsgi(storage)

    def read_only(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return dashboard(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "application/json")])
        return [b'{"reason": "this view of the study cannot be changed"}']

    return read_only


def dashboard(study: Kept, port: int | str) -> None:
    """Serve a study's dashboard on loopback until Ctrl-C.

    Args:
        port: also as text, from a command line.

    Raises:
        SettingError: the package is missing, the port is not free, or the study has no trials.
    """
    number = int(port) if str(port).isdecimal() else port
    check_number("port", number, 1, 65535, whole=True)
    trials = view(study)
    application = _application(trials)
    try:
        server = make_server(HOST, int(number), application, _Server, _Quiet)
    except OSError as error:
        raise SettingError("port", number, f"cannot be used ({error.strerror}); give another one") from None
    with server:
        print(f"{study.name}: http://{HOST}:{number}/dashboard/studies/{trials.study}   (Ctrl-C stops it)", flush=True)
        try:
            with quiet("optuna"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of importances from few trials, at each look
                server.serve_forever()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
