"""Drive a real Chromium by its DevTools protocol, over a pipe.

Source: https://chromedevtools.github.io/devtools-protocol/; messages of `--remote-debugging-pipe`
are JSON, each followed by a zero byte, which Chromium reads from descriptor 3 and writes to 4.
"""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_S = 60.0
STEP_S = 0.05
_LAUNCHER = """
import fcntl, os, sys
from_us, to_us = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(from_us, 3)
os.dup2(to_us, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
_KEYS = {"Enter": "\r", " ": " "}
_CODES = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36}
_CODES |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Chromium:
    """A browser without a window, of a profile of its own."""

    def __init__(self, folder: Path) -> None:
        assert BROWSER is not None
        from_us, self._write = os.pipe()
        self._read, to_us = os.pipe()
        command = [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--remote-debugging-pipe", "--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", f"--user-data-dir={folder / 'profile'}", "about:blank"),
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER, str(from_us), str(to_us), *command],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._ids = itertools.count(1)
        self._buffer = b""
        self._pages: dict[str, Page] = {}

    def send(self, method: str, session: str = "", **parameters: Any) -> Any:
        """Send a command, and return its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE_S
        while True:
            answer = self._receive(until)
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._take_event(answer)

    def take_events(self) -> None:
        """Hand out the events that have come."""
        while b"\0" in self._buffer or select.select([self._read], [], [], 0)[0]:
            self._take_event(self._receive(time.monotonic() + PATIENCE_S))

    def _take_event(self, message: Mapping[str, Any]) -> None:
        page = self._pages.get(message.get("sessionId", ""))
        if page is not None and "method" in message:
            page.take_event(message["method"], message["params"])

    def _receive(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready = select.select([self._read], [], [], max(0.0, until - time.monotonic()))[0]
            assert ready, f"the browser did not answer within {PATIENCE_S} s"
            part = os.read(self._read, 2**20)
            assert part, "the browser has ended"
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        content: dict[str, Any] = json.loads(message)
        return content

    @contextlib.contextmanager
    def open(self, url: str, **screen: Any) -> Iterator["Page"]:
        """Open a page in a window of its own, without cookies and storage of others."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)
        session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = self._pages[session["sessionId"]] = Page(self, session["sessionId"])
        page.begin(**screen)
        page.send("Page.navigate", url=url)
        page.wait_for("location.protocol !== 'about:' && document.readyState === 'complete'")
        try:
            yield page
        finally:
            self.send("Target.disposeBrowserContext", browserContextId=context)
            del self._pages[session["sessionId"]]

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(AssertionError, OSError):
            self.send("Browser.close")
        os.close(self._write)
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            os.close(self._read)


class Page:
    """One page, and what went wrong on it."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []
        """What was written to the console as an error, or was thrown and not caught."""
        self.requests: list[str] = []
        """Addresses of all requests."""

    def send(self, method: str, **parameters: Any) -> Any:
        """Send a command of this page."""
        return self._browser.send(method, self._session, **parameters)

    def take_event(self, method: str, found: Mapping[str, Any]) -> None:
        """Note an event."""
        if method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(found["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "assert"):
            self.errors.append(json.dumps(found["args"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.errors.append(json.dumps(found["entry"]))

    def begin(
        self,
        *,
        width: int = 1200,
        height: int = 900,
        scale: float = 1,
        dark: bool = False,
        still: bool = False,
    ) -> None:
        """Set the screen: its size in CSS pixels, and what the person prefers."""
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if still else "no-preference",
        }
        named = [{"name": name, "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", features=named)

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in JSON; a promise is awaited."""
        found = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """Return the value of an expression as soon as it is true."""
        until = time.monotonic() + PATIENCE_S
        while not (value := self.evaluate(script)):
            assert time.monotonic() < until, f"never true: {script}; errors: {self.errors}"
            time.sleep(STEP_S)
        return value

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).textContent"))

    def click(self, selector: str) -> None:
        """Click an element."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector: str, value: str) -> None:
        """Set the value of a field, as typing does."""
        self.evaluate(
            f"(field => {{ field.value = {json.dumps(value)}; "
            "field.dispatchEvent(new Event('input', { bubbles: true })) })"
            f"(document.querySelector({json.dumps(selector)}))"
        )

    def press(self, key: str, times: int = 1) -> None:
        """Press a key, as a keyboard does."""
        text = _KEYS.get(key, key if len(key) == 1 else "")
        code = _CODES.get(key, ord(key.upper()) if len(key) == 1 else 0)
        known = {"key": key, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
        for _ in range(times):
            self.send("Input.dispatchKeyEvent", type="keyDown", **known)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def drag(self, points: list[tuple[float, float]]) -> None:
        """Press the left button, and move through points of the window."""
        kinds = ["mousePressed", *["mouseMoved"] * (len(points) - 1)]
        for kind, (x, y) in zip(kinds, points, strict=True):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1)
        x, y = points[-1]
        self.send("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left")

    def choose_file(self, selector: str, path: Path) -> None:
        """Choose a file in a field for files."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def photograph(self, *, whole: bool = False, **options: Any) -> bytes:
        """Return a picture of the window, or of the whole page."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=whole, **options)
        return base64.b64decode(found["data"])

    def hosts(self) -> set[str]:
        """Return the hosts of all requests so far; data of the page itself have none."""
        self._browser.take_events()
        return {urlsplit(url).netloc for url in self.requests} - {""}


@contextlib.contextmanager
def start_chromium(folder: Path) -> Iterator[Chromium]:
    """Start a browser, and end it afterwards."""
    browser = Chromium(folder)
    try:
        yield browser
    finally:
        browser.close()
