"""How every command starts, prints and ends.

`tdrs/__init__.py` imports this module first: a command must set some values before libraries are loaded, which read
them only once. When tdrs is imported as a library, nothing is set.
"""

import errno
import getpass
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import TextIO, cast

from tdrs.checked_file import Damaged
from tdrs.lease import LostLease
from tdrs.settings import SettingError, first_line

_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def is_command() -> bool:
    """Whether Python was started as `python -m tdrs.…` and has not run that module yet.

    Until then sys.argv[0] is "-m", and the module's name stands before the arguments.
    """
    word = sys.orig_argv[-len(sys.argv)] if sys.argv[:1] == ["-m"] else ""
    return re.fullmatch(r"(-\w*m)?tdrs(\.[\w.]+)?", word) is not None


def prepare() -> None:
    """Set what must be set before torch is imported. Child processes inherit it.

    Raises:
        SystemExit: the current folder was deleted; libraries cannot be loaded.
    """
    _open_streams()
    try:
        os.getcwd()
    except OSError:
        _say(sys.stderr, "error: the current folder was deleted; change to one that exists")
        raise SystemExit(2) from None
    if os.path.expanduser("~") == "~":
        os.environ["HOME"] = "/nonexistent"  # libraries read it when they are imported
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid{os.getuid()}"  # torch names a folder after it
    for name in ("HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):
        os.environ.setdefault(name, "critical")  # an error names the reason in one line; they log it up to six times
    if not any(name in os.environ for name in _WAITING):
        # By default an idle thread spins for milliseconds on a core that other programs need.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # GNU and LLVM read it
        os.environ["KMP_BLOCKTIME"] = "0"  # Intel's
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no work has begun, so Ctrl-C needs no traceback


class _Output(io.FileIO):
    """An output whose reader may go away. Later output is then discarded, and the work continues."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            if error.errno == errno.ENOSPC and self.fileno() == 1:  # a file that lacks lines is an error
                raise
        return memoryview(data).nbytes  # type: ignore[arg-type]


def _open_streams() -> None:
    """Make stdout and stderr accept every letter and survive the loss of their readers; replace a closed one."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            output = io.BufferedWriter(_Output(stream.fileno(), "wb", closefd=False))
            made = io.TextIOWrapper(
                cast(io.BytesIO, output),
                encoding=stream.encoding,
                errors="replace" if name == "stdout" else "backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, made)


def _say(stream: TextIO, text: str) -> None:
    """Print a last line; it is no error here if that fails."""
    try:
        print(text, file=stream, flush=True)
    except OSError:
        return


def run_command(work: Callable[[], int | None]) -> int:
    """Do a command's work and return the exit code. Errors that a user can correct are one line.

    The code is 0 or what `work` returns; 1 if a file cannot be read or written or is damaged, if a logit is NaN, or if
    another process leads the study now; 2 if a setting is not allowed; 130 after Ctrl-C.
    """
    kept = "what was finished is kept, and the same command continues from there"
    _open_streams()
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for word in sys.argv:
            if re.search("[\ud800-\udfff]", word):
                raise SettingError("command line", word, "has bytes that are no text in this terminal's encoding")
        code = work() or 0
        sys.stdout.flush()
        return code
    except SettingError as error:
        _say(sys.stderr, f"error: {error}")
        return 2
    except (FloatingPointError, LostLease) as error:
        _say(sys.stderr, f"error: {error}")
        return 1
    except Damaged as error:
        _say(sys.stderr, f"error: {error}; the study's own command measures it again")
        return 1
    except OSError as error:
        _say(sys.stderr, f"error: {first_line(error)}" + (f"; {kept}" if error.errno == errno.ENOSPC else ""))
        return 1
    except KeyboardInterrupt:
        _say(sys.stderr, f"stopped; {kept}")
        return 130


if is_command():
    prepare()
