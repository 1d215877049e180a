"""Workers that share a storage but no folder: one claim at a time, everything brought, nobody's death or loss fatal."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from tdrs.records import Records
from tdrs.results import Evaluation, of_rows
from tdrs.sweeps import store as store_module
from tdrs.sweeps.store import Board, Claim, Store
from tests.test_records import A, B, batch


def evaluation(samples: int = 4) -> Evaluation:
    records = batch(0, samples).records
    return Evaluation(records, of_rows(records), ["a note"], {"dc.w_min": (1, 4)}, 2.5, time.time())


@pytest.fixture(autouse=True)
def _read_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "READ", 0.0)


@pytest.fixture
def storage() -> InMemoryStorage:
    return InMemoryStorage()


def store(storage: Any, folder: Path, seconds: float = 60) -> Store:
    return Store(Records(folder, seconds), Board(storage, "work"))


def workers(storage: Any, tmp_path: Path, count: int = 2, seconds: float = 60) -> list[Store]:
    return [store(storage, tmp_path / str(n), seconds) for n in range(count)]


def claimed(store: Store, cache_key: str) -> Claim:
    claim = store.claim(cache_key)
    assert claim
    return claim


def done(store: Store, cache_key: str) -> bool:
    store.fetch(cache_key)
    return store.records.done(cache_key)


def publications(storage: InMemoryStorage) -> list[str]:
    study = storage.get_study_id_from_name("work")
    return [t.user_attrs["cache_key"] for t in storage.get_all_trials(study) if "content" in t.user_attrs]


def test_what_one_measures_all_have(storage: InMemoryStorage, tmp_path: Path) -> None:
    here, there = workers(storage, tmp_path)
    assert not done(there, A)
    claim = here.claim(A)
    assert claim
    with claim:
        assert there.claim(A) is None
        here.records.finish(A, evaluation(), {"batch_size": 2})
        assert not done(there, A)  # it is brought when the claim ends
    assert done(there, A)
    assert there.records.read(A) == here.records.read(A)
    for name in ("config.yaml", "samples.parquet", "result.json"):
        assert (there.records.path(A) / name).read_bytes() == (here.records.path(A) / name).read_bytes()
    with claimed(there, A):
        pass
    assert publications(storage) == [A]


def test_one_that_is_stopped_is_gone_on_with(storage: InMemoryStorage, tmp_path: Path) -> None:
    here, there = workers(storage, tmp_path)
    with claimed(here, A):
        here.records.append(A, batch(0))
        here.records.append(A, batch(2))
    with claimed(there, A):
        assert there.records.batches(A) == [batch(0), batch(2)]
        there.records.append(A, batch(4))
    here.fetch(A)
    assert here.records.batches(A) == [batch(0), batch(2), batch(4)]
    with claimed(here, A):
        pass
    assert len(publications(storage)) == 2  # nothing new, nothing brought


def test_a_failure_is_known_to_all(storage: InMemoryStorage, tmp_path: Path) -> None:
    here, there = workers(storage, tmp_path)
    with claimed(here, A):
        here.records.fail(A, "OutOfMemory", 2, "trace")
    there.fetch(A)
    failure = there.records.failure(A)
    assert failure
    assert (failure.reason, failure.attempts) == ("OutOfMemory", 2)


def test_a_claim_lives_while_it_beats(storage: InMemoryStorage, tmp_path: Path) -> None:
    here, there = workers(storage, tmp_path, seconds=2)  # a machine with much to do may hold a beat back
    claim = here.claim(A)
    assert claim
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        assert there.claim(A) is None
        time.sleep(0.05)
    here._claims._held.clear()  # as if its process had died
    assert there.claim(A) is None
    taken, end = None, time.monotonic() + 20
    while taken is None and time.monotonic() < end:
        time.sleep(0.1)
        taken = there.claim(A)
    assert taken
    here.records.finish(A, evaluation(), {})
    claim.close()  # it lived after all: what it found is taken all the same
    assert done(there, A)
    taken.close()


def test_a_process_that_died_here_is_replaced_at_once(storage: InMemoryStorage, tmp_path: Path) -> None:
    """Its lock went with it, so its claim is void, however short ago it beat."""
    dead = store(storage, tmp_path)
    claim = dead.claim(A)
    assert claim
    claim.lease._over.set()
    claim.lease._file.close()
    assert store(storage, tmp_path / "elsewhere").claim(A) is None
    with claimed(store(storage, tmp_path), A):
        pass


def test_large_ones_go_in_parts(storage: InMemoryStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "PART", 100)
    here, there = workers(storage, tmp_path)
    with claimed(here, A):
        here.records.finish(A, evaluation(100), {})
    assert len(publications(storage)) > 10
    assert done(there, A)
    assert there.records.read(A) == here.records.read(A)


def test_what_was_measured_before_is_brought_by_who_leads(storage: InMemoryStorage, tmp_path: Path) -> None:
    here, there = workers(storage, tmp_path)
    Records(tmp_path / "0").finish(A, evaluation(), {})
    assert not done(there, A)
    for _ in range(2):
        here.publish(A)
    assert done(there, A)
    there.publish(A)
    assert publications(storage) == [A]


def test_one_leads(storage: InMemoryStorage, tmp_path: Path) -> None:
    here, there = workers(storage, tmp_path)
    right = here.lead(tmp_path / "a")
    assert right
    with right:
        assert there.lead(tmp_path / "b") is None
    assert there.lead(tmp_path / "b")


def test_without_its_storage_a_worker_goes_on(
    storage: InMemoryStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, _ = workers(storage, tmp_path)
    with claimed(here, A):
        here.records.finish(A, evaluation(), {})

        def gone(*_: object, **__: object) -> None:
            raise ConnectionError("connection refused\nmore")

        for name in ("create_new_trial", "get_all_trials", "set_trial_state_values"):
            monkeypatch.setattr(storage, name, gone)
    for cache_key in (B, "c" * 16):
        with claimed(here, cache_key):
            here.records.finish(cache_key, evaluation(), {})
        assert done(here, cache_key)
    said = capsys.readouterr().err
    assert said.count("the study's storage is gone (connection refused); this worker goes on alone") == 1


def test_damaged_parts_are_said_and_left(
    storage: InMemoryStorage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = workers(storage, tmp_path)
    values = {"cache_key": A, "digest": "0", "part": 0, "of": 1, "done": False, "content": "aGVsbG8="}
    here._claims._board.add(TrialState.COMPLETE, values)
    assert not done(there, A)
    assert f"what was brought of {A} is damaged" in capsys.readouterr().err


def test_nobody_measures_what_another_one_does(storage: InMemoryStorage, tmp_path: Path) -> None:
    """Four workers, as fast as they can, on the same evaluations in the same order."""
    measured: list[str] = []
    names = [f"{n:016x}" for n in range(25)]

    def work(store: Store) -> None:
        left = list(names)
        while left:
            for name in list(left):
                if done(store, name):
                    left.remove(name)
                elif claim := store.claim(name):
                    with claim:
                        if not done(store, name):
                            measured.append(name)
                            store.records.finish(name, evaluation(), {})

    threads = [threading.Thread(target=work, args=(one,)) for one in workers(storage, tmp_path, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(measured) == sorted(names)
    assert sorted(publications(storage)) == sorted(names)
