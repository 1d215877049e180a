"""Who may measure what (claims), and where the results are (artifacts).

Processes that share the folder of records need no more than that: a lease (`tdrs/lease.py`) is a claim, and the files
of an evaluation are an artifact. For machines that share no folder, both also go through the study's storage. It has a
second Optuna study beside the one that people look at, the board. A running trial of the board is a claim: the storage
numbers trials one by one, and the lowest one alive holds. A finished trial is a part of an artifact, packed by
`Records.pack`. A claim is alive while its beat changes, timed by the reader, so clocks need not agree. If the storage
is gone, a worker goes on alone, and its results stay in its folder.

Optuna's artifact stores and fsspec would not do: they need a folder or an object store that all machines reach.
"""

import base64
import hashlib
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from tdrs.environment import quiet
from tdrs.lease import Lease, LostLease, machine
from tdrs.records import Records
from tdrs.settings import first_line

T = TypeVar("T")
READ = 1.0  # seconds between two reads of the board
PART = 2**20  # characters to a trial: a message to Optuna's proxy has at most 4 MiB
LEAD = "lead"  # the claim of the process that writes the study's files


class Board:
    """An Optuna study with claims and parts of artifacts as its trials.

    Attributes:
        down: why the storage is no longer used; "" while it is.
        trials: those of the last read.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self.storage = storage
        self.down = ""
        self.trials: list[FrozenTrial] = []
        self._name = name
        self._study: int | None = None
        self._time = -READ

    def attempt(self, action: Callable[[], T]) -> T | None:
        """What an action on the storage returns. None if it fails: this is said once and ends the storage's use."""
        if self.down:
            return None
        try:
            return action()
        except Exception as error:  # each storage library has its own errors for a server that is gone
            self.down = first_line(error)
            said = "this worker goes on alone, what it finds is kept"
            print(f"the study's storage is gone ({self.down}); {said}", file=sys.stderr)
            return None

    def add(self, state: TrialState, values: dict[str, Any]) -> int | None:
        """Add a trial; returns its id, None if the storage is gone."""

        trial = create_trial(state=state, value=0.0 if state.is_finished() else None, user_attrs=values)
        with quiet("optuna"):
            return self.attempt(lambda: self.storage.create_new_trial(self._id(create=True), trial))

    def read(self, now: bool = False) -> None:
        """Read the trials, unless the last read was a moment ago."""
        if not now and time.monotonic() - self._time < READ:
            return

        def read() -> list[FrozenTrial]:
            study = self._id(create=False)
            return [] if study is None else self.storage.get_all_trials(study, deepcopy=False)

        trials = self.attempt(read)
        self._time = time.monotonic()
        if trials is not None:
            # trials without a cache key are of an earlier version
            self.trials = [trial for trial in trials if "cache_key" in trial.user_attrs]

    def _id(self, create: bool) -> Any:
        """The id of the Optuna study; None if there is none and it is not to be created."""
        if self._study is None:
            try:
                self._study = self.storage.get_study_id_from_name(self._name)
            except KeyError:
                if create:
                    where: Any = {"storage": self.storage, "study_name": self._name, "load_if_exists": True}
                    self._study = optuna.create_study(**where, direction="maximize")._study_id
        return self._study


class Claims:
    """Claims on the board.

    Args:
        here: this machine and folder. The caller holds the folder's lease, so that another claim from here is of a
            process that died.
        seconds: after so long without a beat a claim is void.
    """

    def __init__(self, board: Board, here: str, seconds: float) -> None:
        self._board = board
        self._here = here
        self._seconds = seconds
        self._beats: dict[int, tuple[int, float]] = {}  # of each claim: its beat, and since when it has been this one
        self._held: dict[int, int] = {}  # our claims, and their beats
        self._heart: threading.Thread | None = None

    def take(self, key: str) -> int | None:
        """A claim's id, −1 without a storage; None if another machine has it."""
        for now in (False, True):  # those who wait do not ask the storage each time
            self._board.read(now)
            if self._holder(key):
                return None
        claim = self._board.add(TrialState.RUNNING, {"cache_key": key, "place": self._here, "beat": 0})
        if claim is None:
            return -1
        self._held[claim] = 0
        self._board.read(now=True)
        holder = self._holder(key)
        if holder is not None and holder._trial_id != claim:
            self.close(claim)
            return None
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, daemon=True)
            self._heart.start()
        return claim

    def check(self, claim: int) -> None:
        """Raises LostLease if another machine has ended a claim."""
        if claim >= 0:
            trial = self._board.attempt(lambda: self._board.storage.get_trial(claim))
            if trial is not None and trial.state != TrialState.RUNNING:
                raise LostLease("another machine leads this study now; this one stops, what it measured is kept")

    def close(self, claim: int) -> None:
        """End a claim, ours or one that is void."""
        self._held.pop(claim, None)

        def close() -> None:
            with suppress(UpdateFinishedTrialError):  # another worker has ended it
                self._board.storage.set_trial_state_values(claim, TrialState.FAIL)

        if claim >= 0:
            self._board.attempt(close)

    def _holder(self, key: str) -> FrozenTrial | None:
        """The claim that holds, as of the last read."""
        now = time.monotonic()
        running = [trial for trial in self._board.trials if trial.state == TrialState.RUNNING]
        claims = [trial for trial in running if trial.user_attrs["cache_key"] == key]
        for trial in sorted(claims, key=lambda trial: trial.number):
            claim, values = trial._trial_id, trial.user_attrs
            if claim in self._held:
                return trial
            if values["beat"] != self._beats.get(claim, (-1, 0))[0]:
                self._beats[claim] = values["beat"], now
            if values["place"] == self._here or now - self._beats[claim][1] > self._seconds:
                self.close(claim)
                continue
            return trial
        return None

    def _beat(self) -> None:
        """Change the beat of our claims, for as long as the process lives."""
        while True:
            time.sleep(self._seconds / 4)
            for claim, beat in list(self._held.items()):
                if self._board.down:
                    return
                with suppress(Exception):  # the next one may arrive; else the claim is void, and two do the same work
                    self._board.storage.set_trial_user_attr(claim, "beat", beat + 1)
                    if claim in self._held:
                        self._held[claim] = beat + 1


class Artifacts:
    """Evaluations as files, on the board and in the folder of records."""

    def __init__(self, board: Board, records: Records) -> None:
        self._board = board
        self._records = records
        self._taken: set[int] = set()  # numbers of the trials whose parts were taken
        self._parts: dict[tuple[str, str, int], dict[int, str]] = {}
        self._packed: dict[str, list[bytes]] = {}  # by cache key: not unpacked yet
        self._there: set[str] = set()  # digests of what is on the board
        self._complete: set[str] = set()  # evaluations that are complete on the board

    def fetch(self, cache_key: str) -> None:
        """Unpack what is new of an evaluation on the board."""
        self._board.read()
        for trial in self._board.trials:
            if trial.number not in self._taken and trial.state.is_finished():
                self._taken.add(trial.number)
                if "content" in trial.user_attrs:
                    self._take(trial.user_attrs)
        for packed in self._packed.pop(cache_key, []):
            try:
                self._records.unpack(cache_key, packed)
            except ValueError as error:  # then it is measured again
                print(error, file=sys.stderr)

    def _take(self, values: dict[str, Any]) -> None:
        """Take a part of an artifact; with the last part it is complete."""
        key = values["cache_key"], values["digest"], values["of"]
        parts = self._parts.setdefault(key, {})
        parts[values["part"]] = values["content"]
        if len(parts) < values["of"]:
            return
        del self._parts[key]
        if values["done"]:
            self._complete.add(values["cache_key"])
        if values["digest"] not in self._there:
            self._there.add(values["digest"])
            packed = base64.b64decode("".join(parts[number] for number in range(values["of"])))
            self._packed.setdefault(values["cache_key"], []).append(packed)

    def publish(self, cache_key: str) -> None:
        """Bring what is kept of an evaluation to the board, if it is not there."""
        if cache_key in self._complete:
            return
        packed = self._records.pack(cache_key)
        digest = hashlib.sha256(packed).hexdigest()[:16]
        if not packed or digest in self._there:
            return
        text = base64.b64encode(packed).decode()
        parts = [text[start : start + PART] for start in range(0, len(text), PART)]
        done = self._records.done(cache_key)
        for number, part in enumerate(parts):
            values = {"cache_key": cache_key, "digest": digest, "part": number, "of": len(parts), "done": done}
            self._board.add(TrialState.COMPLETE, {**values, "content": part})
        self._there.add(digest)
        if done:
            self._complete.add(cache_key)


class Claim(ExitStack):
    """The right to run an evaluation, or to write a study's files, until it is closed."""

    def __init__(self, lease: Lease) -> None:
        super().__init__()
        self.lease = self.enter_context(lease)
        self.checks = [lease.check]

    def check(self) -> None:
        """Raises LostLease if another process has the right now."""
        for check in self.checks:
            check()


class Store:
    """The evaluations of a study: claims and artifacts, in the folder of records and on the board, if there is one.

    Attributes:
        records: the evaluations in the folder.
    """

    def __init__(self, records: Records, board: Board | None = None) -> None:
        self.records = records
        here = f"{machine()} {records.folder.resolve()}"
        self._claims = Claims(board, here, records.lease_seconds) if board else None
        self._artifacts = Artifacts(board, records) if board else None

    def fetch(self, cache_key: str) -> None:
        """Bring what other machines have of an evaluation into the folder."""
        if self._artifacts:
            self._artifacts.fetch(cache_key)

    def publish(self, cache_key: str) -> None:
        """Bring what the folder has of an evaluation to other machines."""
        if self._artifacts:
            self._artifacts.publish(cache_key)

    def claim(self, cache_key: str) -> Claim | None:
        """The right to run an evaluation, which is published at the end; None if another process has it."""
        claim = self._claim(self.records.claim(cache_key), cache_key)
        if claim:
            claim.callback(self.publish, cache_key)
            self.fetch(cache_key)
        return claim

    def lead(self, folder: Path) -> Claim | None:
        """The right to write a study's files; None if another process has it."""
        return self._claim(Lease.take(folder, self.records.lease_seconds, "lock"), LEAD)

    def _claim(self, lease: Lease | None, key: str) -> Claim | None:
        if lease is None:
            return None
        claim = Claim(lease)
        if self._claims:
            ticket = self._claims.take(key)
            if ticket is None:
                claim.close()
                return None
            claim.callback(self._claims.close, ticket)
            claim.checks.append(partial(self._claims.check, ticket))
        return claim
