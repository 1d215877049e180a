"""A page in headless Chromium: opened, asked by script, used with keys, and looked at; by DevTools over a pipe."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
KEYS = {
    "Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip


class Browser:
    """One page; use it in a `with` statement.

    Attributes:
        requests: the addresses of all that was asked for since the last `open`.
        faults: what scripts threw or logged as errors since then.
    """

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        assert CHROMIUM
        (there, commands), (answers, back) = (
            tuple(fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in pipe) for pipe in (os.pipe(), os.pipe())
        )
        given = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
            f"--user-data-dir={folder}", f"--window-size={width},{height}", "about:blank",
        ]  # fmt: skip
        run = f'exec "$@" 3<&{there} 4>&{back}'
        nothing = subprocess.DEVNULL
        self._process = subprocess.Popen(
            ["bash", "-c", run, "bash", CHROMIUM, *given], pass_fds=(there, back), stdout=nothing, stderr=nothing
        )
        os.close(there)
        os.close(back)
        self._commands, self._answers = commands, answers
        self._buffer, self._count, self._session = b"", 0, ""
        self._loaded = False
        self.requests: list[str] = []
        self.faults: list[str] = []

    def __enter__(self) -> Self:
        targets = self._call("Target.getTargets")["targetInfos"]
        (page,) = [one["targetId"] for one in targets if one["type"] == "page"]
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for part in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{part}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read(60)
            assert found is not None, f"no answer to {method}"
            if found.get("id") == number:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result

    def _read(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None if there is none in this time. Events are noted."""
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not select.select([self._answers], [], [], max(0, end - time.monotonic()))[0]:
                return None
            self._buffer += os.read(self._answers, 1 << 20)
        text, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(text)
        match found.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(found["params"]["request"]["url"])
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.faults.append(str(found["params"]["exceptionDetails"]))
            case "Log.entryAdded" if found["params"]["entry"]["level"] == "error":
                self.faults.append(str(found["params"]["entry"]))
        return found

    def open(self, address: str) -> None:
        """Open an address, and wait until its page is loaded."""
        for one in ("about:blank", address):  # without the first, another `#…` of the same page would load nothing
            self.requests, self.faults, self._loaded = [], [], False
            self._call("Page.navigate", url=one)
            while not self._loaded:
                assert self._read(60) is not None, f"{one} does not load"

    def ask(self, script: str) -> Any:
        """The value of an expression of JavaScript; a promise is waited for."""
        given = {"expression": script, "returnByValue": True, "awaitPromise": True, "userGesture": True}
        found = self._call("Runtime.evaluate", **given)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 20) -> Any:
        """The value of an expression when it has become true."""
        end = time.monotonic() + seconds
        while not (value := self.ask(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.03)
        return value

    def press(self, key: str, shift: bool = False) -> None:
        """Press a key and let it go."""
        about: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": 8 * shift}
        text = {"text": "\r"} if key == "Enter" else {}
        self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **about, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, element: str) -> None:
        """Click the middle of an element, which is given as an expression of JavaScript."""
        middle = "{ const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }"
        x, y = self.ask(f"((e) => {{ e.scrollIntoView(); return (() => {middle})(); }})({element})")
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self._call("Input.insertText", text=text)

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """Set the size of the window, and whether the user prefers dark colours."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        self.ask("new Promise(requestAnimationFrame)")  # what listens to these changes is told with the next frame

    def picture(self, path: Path) -> None:
        """Save what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def memory(self) -> float:
        """The page's JavaScript heap, in MiB, after a garbage collection."""
        self._call("HeapProfiler.collectGarbage")
        return float(self._call("Runtime.getHeapUsage")["usedSize"]) / 2**20
