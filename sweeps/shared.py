"""Records whose evaluations also go through a study's storage, for workers on machines that share no folder.

The storage has a second Optuna study beside the one that people look at. A trial of it that runs is a claim on an
evaluation: they are numbered one by one, and the lowest that lives has it. One that is over has a part of what a worker
brought, the files that `Records.pack` takes. A claim lives while its beat changes, by the watch of whoever looks, so
clocks need not agree. Where the storage is gone a worker goes on alone, and what it finds is kept in its folder.
"""

import base64
import hashlib
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tdrs.lease import Lease, LostLease, machine
from tdrs.records import Records
from tdrs.settings import first_line

T = TypeVar("T")
LOOK = 1.0  # seconds between two looks at the storage
PART = 2**20  # characters to a trial: a message to Optuna's proxy has at most 4 MiB
LEAD = "lead"  # what is claimed to write the trials that people look at


class Shared(Records):
    """Records in a folder, and through a storage.

    Args:
        study: the name of the study that has the claims.
        lease_seconds: after so long without a beat a claim is void.

    Attributes:
        down: why the storage is no longer used; "" while it is.
    """

    def __init__(self, folder: Path, storage: BaseStorage, study: str, lease_seconds: float = 60) -> None:
        super().__init__(folder, lease_seconds)
        self.down = ""
        self._storage = storage
        self._name = study
        self._here = f"{machine()} {folder.resolve()}"
        self._study: int | None = None
        self._looked = -LOOK
        self._claims: dict[str, list[FrozenTrial]] = {}
        self._beats: dict[int, tuple[int, float]] = {}  # of each claim: its beat, and since when it has been this one
        self._read: set[int] = set()  # numbers of trials whose parts were taken
        self._parts: dict[tuple[str, str, int], dict[int, str]] = {}
        self._brought: dict[str, list[bytes]] = {}  # not unpacked yet
        self._there: set[str] = set()  # digests of what is in the storage
        self._whole: set[str] = set()  # evaluations that are in the storage to their end
        self._held: dict[int, int] = {}  # our claims, and their beats
        self._heart: threading.Thread | None = None
        self._leads = -1  # our claim on the right to lead

    def done(self, cache_key: str) -> bool:
        return super().done(cache_key) or (self._bring(cache_key) and super().done(cache_key))

    def failure(self, cache_key: str) -> Any:
        self._bring(cache_key)
        return super().failure(cache_key)

    def batches(self, cache_key: str) -> Any:
        self._bring(cache_key)
        return super().batches(cache_key)

    def claim(self, cache_key: str, shard: str | None = None) -> Lease | None:
        lease = super().claim(cache_key, shard)
        if lease is None:
            return None
        ticket = self._ticket(cache_key)
        if ticket is None:
            lease.release()
            return None
        self._bring(cache_key)

        def ending() -> None:
            self.publish(cache_key)
            self._close(ticket)

        lease.ending = ending
        return lease

    def lead(self) -> ExitStack | None:
        """The right to write the trials that people look at, until it is left; None while another machine has it."""
        ticket = self._ticket(LEAD)
        if ticket is None:
            return None
        right = ExitStack()
        right.callback(self._close, ticket)
        self._leads = ticket
        return right

    def check_lead(self) -> None:
        """Raises LostLease if another machine has taken the right that `lead` gave."""
        if self._leads < 0:
            return
        trial = self._attempt(lambda: self._storage.get_trial(self._leads))
        if trial is not None and trial.state != TrialState.RUNNING:
            raise LostLease("another machine leads this study now; this one stops, what it measured is kept")

    def publish(self, cache_key: str) -> None:
        """Bring what is kept of an evaluation to the storage, if that lacks it."""
        if cache_key in self._whole:
            return
        packed = self.pack(cache_key)
        digest = hashlib.sha256(packed).hexdigest()[:16]
        if not packed or digest in self._there:
            return
        text = base64.b64encode(packed).decode()
        parts = [text[start : start + PART] for start in range(0, len(text), PART)]
        done = super().done(cache_key)
        for number, part in enumerate(parts):
            values = {"cache_key": cache_key, "digest": digest, "part": number, "of": len(parts), "done": done}
            self._add(TrialState.COMPLETE, {**values, "content": part})
        self._there.add(digest)
        if done:
            self._whole.add(cache_key)

    def _attempt(self, action: Callable[[], T]) -> T | None:
        """What an action on the storage returns; None when it fails, which is said once and ends its use."""
        if self.down:
            return None
        try:
            return action()
        except Exception as error:  # each library below has errors of its own for a server that is gone
            self.down = first_line(error)
            print(
                f"the study's storage is gone ({self.down}); this worker goes on alone, what it finds is kept",
                file=sys.stderr,
            )
            return None

    def _id(self, create: bool) -> int | None:
        """The study with the claims; None if there is none."""
        if self._study is None:
            try:
                self._study = self._storage.get_study_id_from_name(self._name)
            except KeyError:
                if not create:
                    return None
                try:
                    self._study = self._storage.create_new_study([StudyDirection.MAXIMIZE], self._name)
                except DuplicatedStudyError:  # another worker was first
                    self._study = self._storage.get_study_id_from_name(self._name)
        return self._study

    def _add(self, state: TrialState, values: dict[str, Any]) -> int | None:
        def add() -> int:
            study = self._id(create=True)
            assert study is not None
            trial = create_trial(state=state, value=0.0 if state.is_finished() else None, user_attrs=values)
            return self._storage.create_new_trial(study, trial)

        return self._attempt(add)

    def _look(self, now: bool = False) -> None:
        """Take in what is new in the storage, if the last look was long enough ago."""
        if not now and time.monotonic() - self._looked < LOOK:
            return

        def read() -> list[FrozenTrial]:
            study = self._id(create=False)
            return [] if study is None else self._storage.get_all_trials(study, deepcopy=False)

        trials = self._attempt(read)
        self._looked = time.monotonic()
        if trials is None:
            return
        self._claims = {}
        for trial in trials:
            values = trial.user_attrs
            if trial.state == TrialState.RUNNING:
                self._claims.setdefault(values["cache_key"], []).append(trial)
            elif trial.number not in self._read:
                self._read.add(trial.number)
                if "content" in values:
                    self._take(values)

    def _take(self, values: dict[str, Any]) -> None:
        """A part of what a worker brought; with the last of them it is whole."""
        key = values["cache_key"], values["digest"], values["of"]
        parts = self._parts.setdefault(key, {})
        parts[values["part"]] = values["content"]
        if len(parts) < values["of"]:
            return
        del self._parts[key]
        if values["done"]:
            self._whole.add(values["cache_key"])
        if values["digest"] not in self._there:
            self._there.add(values["digest"])
            packed = base64.b64decode("".join(parts[number] for number in range(values["of"])))
            self._brought.setdefault(values["cache_key"], []).append(packed)

    def _bring(self, cache_key: str) -> bool:
        """Unpack what others have brought of an evaluation; whether there was something."""
        self._look()
        packed = self._brought.pop(cache_key, [])
        for one in packed:
            try:
                self.unpack(cache_key, one)
            except ValueError as error:  # then it is measured again
                print(error, file=sys.stderr)
        return bool(packed)

    def _holder(self, cache_key: str) -> FrozenTrial | None:
        """The claim that has an evaluation, as far as the last look tells."""
        now = time.monotonic()
        for trial in sorted(self._claims.get(cache_key, []), key=lambda trial: trial.number):
            number, values = trial._trial_id, trial.user_attrs
            if number in self._held:
                return trial
            # a claim from this folder, whose lock we have, is of a process that died
            dead = values["place"] == self._here
            if values["beat"] != self._beats.get(number, (-1, 0))[0]:
                self._beats[number] = values["beat"], now
            if dead or now - self._beats[number][1] > self.lease_seconds:
                self._close(number)
                continue
            return trial
        return None

    def _ticket(self, cache_key: str) -> int | None:
        """A claim's trial, −1 without a storage, None if another has it; the folder's lock is held."""
        for now in (False, True):  # those who wait do not ask the storage each time
            self._look(now)
            if self._holder(cache_key):
                return None
        ticket = self._add(TrialState.RUNNING, {"cache_key": cache_key, "place": self._here, "beat": 0})
        if ticket is None:
            return -1
        self._held[ticket] = 0
        self._look(now=True)
        holder = self._holder(cache_key)
        if holder is not None and holder._trial_id != ticket:
            self._close(ticket)
            return None
        if self._heart is None:
            self._heart = threading.Thread(target=self._beat, daemon=True)
            self._heart.start()
        return ticket

    def _close(self, ticket: int) -> None:
        """End a claim, ours or one that is void."""
        self._held.pop(ticket, None)

        def close() -> None:
            with suppress(UpdateFinishedTrialError):  # somebody else ended it
                self._storage.set_trial_state_values(ticket, TrialState.FAIL)

        if ticket >= 0:
            self._attempt(close)

    def _beat(self) -> None:
        """Say that our claims live, for as long as the process does."""
        while True:
            time.sleep(self.lease_seconds / 4)
            for ticket, beat in list(self._held.items()):
                if self.down:
                    return
                with suppress(Exception):  # the next one may arrive; else the claim is void, and two do the same work
                    self._storage.set_trial_user_attr(ticket, "beat", beat + 1)
                    if ticket in self._held:
                        self._held[ticket] = beat + 1
