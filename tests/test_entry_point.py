"""What all commands share: streams that nothing breaks, exit codes, what is set before torch is loaded."""

import ast
import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tdrs import entry_point
from tdrs.entry_point import _Output, is_command, prepare, run_command
from tdrs.settings import SettingError, folder_named
from tdrs.stopping import stoppable, uninterrupted

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for part in ("tdrs", "sweeps", "analysis") for path in (ROOT / part).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_is_utf_8_whatever_the_locale(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        modes = [a.value for a in node.args[-1:] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        assert name not in ("read_text", "write_text"), f"line {node.lineno} has no encoding"
        assert not (name == "open" and modes and "b" not in modes[0]), f"line {node.lineno} has no encoding"


def test_every_command_is_run_as_one() -> None:
    entries = [text for path in SOURCES if "\nif __name__ ==" in (text := path.read_text(encoding="utf-8"))]
    assert len(entries) > 10
    assert all("sys.exit(run_command(" in text or "sys.exit(run(" in text for text in entries)


@pytest.mark.parametrize(
    ("original", "arguments", "expected"),
    [
        (["python", "-m", "tdrs.sweep", "a=1"], ["-m", "a=1"], True),
        (["python", "-X", "utf8", "-Im", "tdrs.analysis.report"], ["-m"], True),
        (["python", "-mtdrs.study", "list"], ["-m", "list"], True),
        (["python", "-m", "pytest", "tdrs.sweep"], ["-m", "tdrs.sweep"], False),
        (["python", "-m", "tdrs_other.x"], ["-m"], False),
        (["python", "mine.py", "tdrs.sweep"], ["mine.py", "tdrs.sweep"], False),
        (["python"], [""], False),
    ],
)
def test_a_command_is_told_from_a_library(
    monkeypatch: pytest.MonkeyPatch, original: list[str], arguments: list[str], expected: bool
) -> None:
    monkeypatch.setattr(sys, "orig_argv", original)
    monkeypatch.setattr(sys, "argv", arguments)
    assert is_command() == expected


@pytest.mark.parametrize("given", ["", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_threads_wait_without_spinning_unless_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setattr(entry_point, "_open_streams", lambda: None)
    handler = signal.getsignal(signal.SIGINT)
    for name in entry_point._WAITING:
        monkeypatch.setenv(name, "")  # put back afterwards
        monkeypatch.delenv(name)
    if given:
        monkeypatch.setenv(given, "mine")
    prepare()
    signal.signal(signal.SIGINT, handler)
    assert os.environ.get("OMP_WAIT_POLICY") == {"": "PASSIVE", "OMP_WAIT_POLICY": "mine"}.get(given)


def test_a_user_without_name_and_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object) -> object:
        raise KeyError("no such uid")

    monkeypatch.setattr(entry_point, "_open_streams", lambda: None)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    handler = signal.getsignal(signal.SIGINT)
    prepare()
    signal.signal(signal.SIGINT, handler)
    assert os.environ["HOME"] == "/nonexistent"
    assert os.environ["USER"] == f"uid{os.getuid()}"


def test_the_home_folder_in_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert folder_named("output", "~/res") == Path("/home/me/res")
    assert folder_named("output", "res~") == Path("res~")
    for bad in ("~no such user/x", "", None, 3):
        with pytest.raises(SettingError, match="output = "):
            folder_named("output", bad)


def test_a_reader_that_goes_away_ends_nothing() -> None:
    read, write = os.pipe()
    os.close(read)
    with io.TextIOWrapper(io.BufferedWriter(_Output(write, "wb")), encoding="utf-8") as stream:
        for _ in range(3):
            print("±" * 10_000, file=stream, flush=True)


def test_output_to_a_full_disk_is_said_once() -> None:
    code = "import sys; from tdrs.entry_point import run_command; sys.exit(run_command(lambda: print('\\xb1')))"
    surroundings = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONPATH": str(ROOT)}
    light = "import sys, types; sys.modules['tdrs'] = types.ModuleType('tdrs'); "  # without torch
    light += f"sys.modules['tdrs'].__path__ = [{str(ROOT / 'tdrs')!r}]; "
    done = subprocess.run([sys.executable, "-c", light + code], env=surroundings, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"?\n", b"")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", light + code], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    closed = f'{sys.executable} -c "{light + code}" >&-'
    assert subprocess.run(["sh", "-c", closed], env=surroundings, check=False).returncode == 0


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SettingError("a", 1, "must be 2"), 2, "error: a = 1: must be 2"),
        (FloatingPointError("a logit is NaN"), 1, "error: a logit is NaN"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "error: [Errno 13] Permission denied: 'x'"),
        (OSError(errno.ENOSPC, "full"), 1, "error: [Errno 28] full; what was finished is kept"),
        (KeyboardInterrupt(), 130, "stopped; what was finished is kept"),
    ],
)
def test_errors_are_one_line(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise error

    assert run_command(work) == code
    line = capsys.readouterr().err
    assert line.startswith(said)
    assert line.count("\n") == 1


def test_signals_wait_while_a_run_is_written() -> None:
    done = []
    with stoppable() as stop:
        stop.requested = True
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            with uninterrupted():
                with uninterrupted():
                    signal.raise_signal(signal.SIGINT)
                    done.append("written")
                done.append("guarded")
            done.append("never")
    assert done == ["written", "guarded"]
