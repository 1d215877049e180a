"""Real servers for tests, on the loopback and for as long as they are needed: PostgreSQL, Optuna's proxy."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

USER = "postgres"  # the server refuses root


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def binaries() -> Path | None:
    """The folder of PostgreSQL's programs; None where there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    if found:
        folders.append(Path(found).parent)
    return next((folder for folder in folders if (folder / "pg_isready").exists()), None)


def wait_for(ready: Callable[[], Any], process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until something no longer raises; raises RuntimeError with the log if the process ends or 30 s pass."""
    for _ in range(300):
        try:
            ready()
            return
        except Exception:  # not ready, in the words of each library
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise RuntimeError(log.read_text())


@contextmanager
def postgresql() -> Iterator[str]:
    """A server's address, as `study.storage` has it: a database with nothing in it."""
    programs = binaries()
    assert programs
    user: dict[str, Any] = {"user": USER} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="tdrs-postgresql-", dir="/tmp"))
    if user:
        shutil.chown(folder, USER)
    port = free_port()
    log = folder.with_suffix(".log")
    try:
        subprocess.run(
            [programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "tdrs", "--no-sync"],
            check=True, capture_output=True, cwd="/", **user,
        )  # fmt: skip
        with log.open("wb") as said:
            server = subprocess.Popen(
                [programs / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"],
                stdout=said, stderr=said, cwd="/", **user,
            )  # fmt: skip
        try:
            ask = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
            wait_for(lambda: subprocess.run(ask, check=True, stdout=subprocess.DEVNULL), server, log)
            yield f"postgresql://tdrs@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # fast: it does not wait for its clients to leave
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink(missing_ok=True)


PROXY = """
import sys
from optuna.storages import run_grpc_proxy_server
from tdrs.sweeps.storage import open_storage
run_grpc_proxy_server(open_storage(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]))
"""


@contextmanager
def proxy(behind: str, folder: Path) -> Iterator[str]:
    """The address of Optuna's proxy, as `study.storage` has it, with a database behind it."""
    port = free_port()
    log = folder / "proxy.log"
    with log.open("wb") as said:
        server = subprocess.Popen([sys.executable, "-c", PROXY, behind, str(port)], stdout=said, stderr=said)
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port)).close(), server, log)
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait(30)
