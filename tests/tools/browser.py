"""Drive Chromium by its DevTools protocol over a pipe: no driver and no package is needed.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 60.0
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-default-apps", "--no-default-browser-check", "--hide-scrollbars=false",
)  # fmt: skip


class Trap:
    """Where the names `*.evil.test` lead to: counts the connections that anything opens."""

    def __init__(self) -> None:
        self.connections: list[bytes] = []
        # An address that nobody else has, where there is one: a port of 127.0.0.1 may have been somebody's before.
        self.host = f"127.83.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
        try:
            self._listener = socket.create_server((self.host, 0))
        except OSError:
            self.host = "127.0.0.1"
            self._listener = socket.create_server((self.host, 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(1)
            with connection:
                try:
                    self.connections.append(connection.recv(300))
                except OSError:
                    self.connections.append(b"")

    def close(self) -> None:
        self._listener.close()


class Browser:
    """One page of a headless Chromium, which can reach 127.0.0.1, and a trap under `*.evil.test`."""

    def __init__(self, width: int = 1280, height: int = 800) -> None:
        assert PROGRAM is not None
        self.trap = Trap()
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Chromium itself asks for addresses too; those lead nowhere.
        rules = f"MAP *.evil.test {self.trap.host}:{self.trap.port}, MAP * ~NOTFOUND, EXCLUDE 127.*"
        command = [
            PROGRAM, *QUIET, f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}",
            f"--host-resolver-rules={rules}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        wrapped = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *command]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            wrapped, pass_fds=(theirs_in, theirs_out), stdout=quiet, stderr=quiet, start_new_session=True
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._heard: queue.Queue[dict[str, Any]] = queue.Queue()
        self.events: list[dict[str, Any]] = []
        self._number, self._session = 0, ""
        threading.Thread(target=self._read, daemon=True).start()
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(each["targetId"] for each in targets if each["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "DOM", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _read(self) -> None:
        rest = b""
        while True:
            chunk = os.read(self._in, 1 << 20)
            if not chunk:
                self._heard.put({"closed": True})
                return
            *messages, rest = (rest + chunk).split(b"\0")
            for message in messages:
                self._heard.put(json.loads(message))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; what else is heard meanwhile is kept in `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + SECONDS
        while True:
            heard = self._heard.get(timeout=max(0.01, until - time.monotonic()))
            if heard.get("closed"):
                raise RuntimeError("Chromium has gone")
            if heard.get("id") != self._number:
                self.events.append(heard)
            elif "error" in heard:
                raise RuntimeError(f"{method}: {heard['error']}")
            else:
                return dict(heard["result"])

    def run(self, script: str) -> Any:
        """The value of an expression, or of what it promises."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:1000])
        return found["result"].get("value")

    def open(self, address: str) -> None:
        """Load a page and wait until everything in it is there."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def wait(self, condition: str, seconds: float = SECONDS) -> None:
        """Wait for an expression to become true."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                if self.run(condition):
                    return
            except RuntimeError as error:
                if "context" not in str(error):
                    raise
            time.sleep(0.05)
        raise TimeoutError(condition)

    def size(self, width: int, height: int) -> None:
        """The window's size in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def dark(self, on: bool) -> None:
        """Whether the visitor prefers dark pages."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if on else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Save what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def mouse(self, kind: str, x: float, y: float, button: str = "left") -> None:
        """`mousePressed`, `mouseMoved` or `mouseReleased`."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press, move in steps, release."""
        self.mouse("mousePressed", *start)
        for step in range(1, 5):
            self.mouse("mouseMoved", *(a + (b - a) * step / 4 for a, b in zip(start, end, strict=True)))
        self.mouse("mouseReleased", *end)

    def click(self, selector: str) -> None:
        """Click in the middle of an element, as a visitor would."""
        x, y = self.middle(selector)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def middle(self, selector: str) -> tuple[float, float]:
        """The middle of an element, which is scrolled into view."""
        script = (
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        x, y = self.run(script)
        return float(x), float(y)

    def upload(self, selector: str, files: list[Path]) -> None:
        """Choose files in an input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(each) for each in files])

    def downloads(self, folder: Path) -> None:
        """Keep what is downloaded."""
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def heard(self, method: str) -> list[dict[str, Any]]:
        """The events of one kind so far."""
        return [each["params"] for each in self.events if each.get("method") == method]

    def close(self) -> None:
        """End the browser."""
        try:
            session, self._session = self._session, ""
            self.call("Browser.close")
            self._session = session
        except (RuntimeError, OSError, queue.Empty):
            self._process.kill()
        self._process.wait(timeout=20)
        self.trap.close()
        for each in (self._in, self._out):
            os.close(each)
        self._profile.cleanup()
