"""A page in a headless Chromium, as far as tests ask: how it is laid out, and what it complains of.

It is spoken to by the DevTools protocol through two pipes, so that no package is needed for it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_COMPLAINTS = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
# The protocol is spoken on descriptors 3 and 4.
_WIRED = """\
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run")


class Tab:
    """A page that is open.

    Attributes:
        complaints: what went to the console, and what was asked for outside of the file.
    """

    def __init__(self, asked: int, answered: int) -> None:
        self._asked, self._answered, self._number, self._left = asked, answered, 0, b""
        self._session: dict[str, str] = {}
        self.complaints: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._asked, json.dumps(message).encode() + b"\0")
        while (found := self._read()).get("id") != self._number:
            pass
        assert "error" not in found, found
        result: dict[str, Any] = found["result"]
        return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            more = os.read(self._answered, 1 << 20)
            assert more, "Chromium has ended"
            self._left += more
        message, self._left = self._left.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        url = found.get("params", {}).get("request", {}).get("url", "file:")
        if found.get("method") in _COMPLAINTS or not url.startswith(("file:", "data:")):
            self.complaints.append(found)
        return found

    def open(self, page: Path, width: int, dark: bool = False) -> None:
        """Show a page, so many pixels wide."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": ("light", "dark")[dark]}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self.ask("document.readyState") != "complete":
            pass

    def ask(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"]["value"]

    def picture(self, path: Path) -> None:
        """The whole page, as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """The page as it is printed, as PDF."""
        found = self.call("Page.printToPDF", printBackground=True)
        return base64.b64decode(found["data"])


@contextmanager
def tab(home: Path) -> Iterator[Tab]:
    """A new one, in a browser that keeps what it notes in `home`."""
    assert CHROMIUM is not None
    (hears, asked), (answered, tells) = os.pipe(), os.pipe()
    command = [CHROMIUM, *_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={home}"]
    wired = [sys.executable, "-IS", "-c", _WIRED, str(hears), str(tells), *command]
    quiet = subprocess.DEVNULL
    browser = subprocess.Popen(
        wired, pass_fds=(hears, tells), stdin=quiet, stdout=quiet, stderr=quiet
    )
    os.close(hears)
    os.close(tells)
    try:
        yield Tab(asked, answered)
    finally:
        browser.kill()
        browser.wait()
        os.close(asked)
        os.close(answered)
