"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_START = 60  # seconds that the browser may take to start


def find_browser() -> str | None:
    """The path of a Chromium or Chrome, or None."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One page, and what it did: `problems` (exceptions and console errors) and `requests` (addresses)."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number, self._session = socket, 0, None
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._loaded = False

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        self._number += 1
        number = self._number
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": params, **session})
        while True:
            message = await self._receive()
            if message.get("id") == number:
                assert "error" not in message, (method, message["error"])
                return message["result"]

    async def _receive(self) -> dict[str, Any]:
        message = await self._socket.receive_json(timeout=_START)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Page.loadEventFired":
            self._loaded = True

    async def open(self, path: Path, width: int, height: int, dark: bool) -> None:
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.size(width, height)
        await self.scheme(dark)
        await self.send("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            await self._receive()

    async def size(self, width: int, height: int) -> None:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.send("Emulation.setDeviceMetricsOverride", **screen)

    async def scheme(self, dark: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression evaluates to; a promise is waited for."""
        found = await self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, (expression, found["exceptionDetails"])
        return found["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + _START
        while not await self.value(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            await asyncio.sleep(0.05)

    async def choose(self, selector: str, value: Any, event: str) -> None:
        """Set a control as a user would."""
        target = f"document.querySelector({json.dumps(selector)})"
        script = f"{target}.value = {json.dumps(value)}; {target}.dispatchEvent(new Event({json.dumps(event)}))"
        await self.value(f"{{{script}}}")

    async def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            codes = {"ArrowLeft": 37, "ArrowRight": 39, "End": 35, "Home": 36}
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    async def hover(self, selector: str) -> None:
        """Move the mouse to the middle of an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = await self.value(f"[{box}.x + {box}.width / 2, {box}.y + {box}.height / 2]")
        await self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def picture(self, path: Path) -> None:
        """A PNG of what is in the window."""
        shot = await self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


def browse(
    path: Path,
    visit: Callable[[Page], Coroutine[Any, Any, None]],
    width: int = 1280,
    height: int = 900,
    dark: bool = False,
) -> None:
    """Open a file in a fresh browser and let `visit` look at it."""
    browser = find_browser()
    assert browser is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Containers and root have no sandbox and a small /dev/shm; the page is our own file.
        settings = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"]
        settings += ["--disable-background-networking", "--disable-extensions", "--no-sandbox"]
        command = [browser, *settings, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": "disabled:"}
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
        process = subprocess.Popen(command, **silent)  # type: ignore[call-overload]
        try:
            asyncio.run(_visit(_address(Path(profile), process), path, visit, width, height, dark))
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Where the browser listens, once it does."""
    port, end = profile / "DevToolsActivePort", time.monotonic() + _START
    while time.monotonic() < end:
        lines = port.read_text().splitlines() if port.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        assert process.poll() is None, "the browser ended"
        time.sleep(0.05)
    raise AssertionError("the browser does not start")


async def _visit(
    address: str, path: Path, visit: Callable[[Page], Coroutine[Any, Any, None]], width: int, height: int, dark: bool
) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
        page = Page(socket)
        await page.open(path, width, height, dark)
        await visit(page)
