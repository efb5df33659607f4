"""A real headless Chromium, driven over its DevTools protocol."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from tests.servers import PATIENCE_SECONDS, eventually

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._loaded = asyncio.Event()
        self.complaints: list[str] = []  # errors of the console, violations of the policy included

    async def listen(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            elif told["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.complaints.append(told["params"]["entry"]["text"])
            elif told["method"] in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                self.complaints.append(json.dumps(told["params"]))

    async def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        future = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await future
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    async def open(self, url: str) -> None:
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        await self._wait()

    async def _wait(self, seconds: float = PATIENCE_SECONDS) -> None:
        async with asyncio.timeout(seconds):
            await self._loaded.wait()

    async def loads(self, *, seconds: float) -> None:
        """Wait until the page has loaded itself again."""
        self._loaded.clear()
        await self._wait(seconds)

    async def read(self, script: str) -> Any:
        """What a piece of script says, run by the debugger: the page itself may run none."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    async def wait_for(self, script: str) -> Any:
        """What a promise comes to."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    async def picture(self) -> bytes:
        """The whole page as a PNG, however long it is."""
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 6000), "scale": 1}
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    async def text(self) -> str:
        found = await self.read("document.body.innerText")
        return str(found)

    async def submit(self, script: str) -> None:
        """Run a script that leaves the page, and wait for the next one."""
        self._loaded.clear()
        await self.read(script)
        await self._wait()

    async def press(self, button: str) -> None:
        """Click the first button with this text."""
        find = f"[...document.querySelectorAll('button')].find(b => b.innerText === {json.dumps(button)})"
        assert await self.read(f"Boolean({find})"), f"there is no button {button!r}"
        await self.submit(f"{find}.click()")


@contextlib.asynccontextmanager
async def chromium(folder: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> AsyncIterator[Page]:
    """A tab of a browser of its own."""
    profile = folder / f"chromium-{width}-{dark}"
    process = await asyncio.create_subprocess_exec(
        "chromium",
        *FLAGS,
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:

        async def port() -> str | None:
            file = profile / "DevToolsActivePort"
            return file.read_text().splitlines()[0] if file.is_file() and file.read_text().strip() else None

        number = await eventually(port)
        async with aiohttp.ClientSession() as session:

            async def tab() -> Any:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://127.0.0.1:{number}/json/list") as response:
                        return [one for one in await response.json() if one["type"] == "page"]
                return None

            (first, *_) = await eventually(tab)
            async with session.ws_connect(first["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await page.call(f"{domain}.enable")
                await page.call(
                    "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
                )
                scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
                await page.call("Emulation.setEmulatedMedia", features=[scheme])
                yield page
                listening.cancel()
    finally:
        process.kill()
        await process.wait()
