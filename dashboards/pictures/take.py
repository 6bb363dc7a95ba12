"""
Take the pictures of the dashboards. See README.md beside this file.

    python -m dashboards.pictures.take [overview queue ...] [--minutes 15] [--prometheus URL]

Needs node with npm, chromium, pngquant and prometheus.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from tests.servers.process import Server, free_port, guardian
from tests.servers.prometheus import PrometheusServer

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
IMAGES: Final = ROOT / "docs" / "images"

#: Out of sight of git, linters and tests; "make clean" removes it.
BUILD: Final = ROOT / ".cache" / "pictures"

#: What is chosen in each dashboard where it is not everything.
CHOICES: Final[dict[str, dict[str, str]]] = {
    "overview": {},
    "queue": {},
    "task": {"task": "shop.images.resize"},
    "worker": {},
    "slo": {},
    "exporter": {},
}

#: As in deploy/prometheus.yml, because the demo's waves are short.
SCRAPE_SECONDS: Final = 5

WIDTH: Final = 1600

#: How long the page may ask and draw.
PAGE_SECONDS: Final = 60.0

#: Enough for what is nearly all text and lines on a dark ground.
COLORS: Final = 160

#: It talks to this machine alone.
CHROMIUM: Final = (
    "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip


def main() -> None:
    """Build the page, let the demo run for a while, and photograph."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.pictures.take", description="Take the pictures.")
    parser.add_argument("names", nargs="*", choices=[*CHOICES, []], help="of dashboards; all of them by default")
    parser.add_argument("--minutes", type=float, default=15.0, help="how much time they show")
    parser.add_argument(
        "--before", type=float, default=10.0, help="minutes the demo runs before, for forecasts and alerts"
    )
    parser.add_argument("--prometheus", metavar="URL", help="has scraped a demo already; else one is started")
    options = parser.parse_args()
    build()
    names = options.names or list(CHOICES)
    # Chromium's processes may still write to their profile when the first has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if options.prometheus:
            asyncio.run(take(names, options.prometheus, options.minutes, Path(folder)))
        else:
            with watched_demo(Path(folder)) as url:
                wait(options.before + options.minutes)
                asyncio.run(take(names, url, options.minutes, Path(folder)))
    guardian.dismiss()


def build() -> None:
    """Make the page that draws a dashboard. The packages come from the npm registry, once."""
    BUILD.mkdir(parents=True, exist_ok=True)
    wanted = (HERE / "package.json").read_text("utf-8")
    have = BUILD / "installed.json"
    for file in HERE.glob("*.*"):
        if file.suffix in (".html", ".js", ".json"):
            shutil.copy(file, BUILD)
    if not have.exists() or have.read_text("utf-8") != wanted:
        # Some of Grafana's packages ask for versions of others that the rest does not.
        options = ("--legacy-peer-deps", "--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund")
        subprocess.run(["npm", "install", *options], cwd=BUILD, check=True)
        have.write_text(wanted, "utf-8")
    shutil.copytree(HERE / "src", BUILD / "src", dirs_exist_ok=True)
    subprocess.run(["node_modules/.bin/vite", "build", "--logLevel", "error"], cwd=BUILD, check=True)


class Demo(Server):
    """``celery-lookout demo``, which ends its own children."""

    stop_seconds = 30.0

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        address = f"127.0.0.1:{self.port}"
        argv = [sys.executable, "-m", "celery_lookout", "demo", "--web.listen-address", address]
        super().__init__(argv, folder, name="demo")


@contextmanager
def watched_demo(folder: Path) -> Iterator[str]:
    """Run the demo and a Prometheus with the alert rules that ship, and yield Prometheus's address."""
    demo = Demo(folder)
    config = f"""
global: {{scrape_interval: {SCRAPE_SECONDS}s, evaluation_interval: {SCRAPE_SECONDS}s}}
rule_files: ["{ROOT / "alerts" / "rules.yml"}"]
scrape_configs:
  - job_name: celery-lookout
    static_configs: [{{targets: ["127.0.0.1:{demo.port}"]}}]
"""
    with PrometheusServer(folder / "prometheus", config) as prometheus:
        demo.start()
        try:
            yield f"http://127.0.0.1:{prometheus.port}"
        finally:
            demo.stop()


def wait(minutes: float) -> None:
    """Let the demo run, and say for how long."""
    print(f"the demo runs for {minutes:g} minutes", flush=True)
    time.sleep(minutes * 60)


async def take(names: Sequence[str], prometheus: str, minutes: float, folder: Path) -> None:
    """Take a picture of each dashboard in *names* over the last *minutes*, and say what is empty on it."""
    end = time.time()
    async with served() as site, browser(folder) as page:
        for name in names:
            values = {f"var-{variable}": value for variable, value in CHOICES[name].items()}
            query = {
                "dashboard": name,
                "prometheus": prometheus,
                "scrape": SCRAPE_SECONDS,
                "from": round((end - minutes * 60) * 1000),
                "to": round(end * 1000),
                **values,
            }
            empty = await page.open(f"{site}/?{urllib.parse.urlencode(query)}")
            picture = IMAGES / f"dashboard-{name}.png"
            picture.write_bytes(reduced(await page.photograph()))
            print(f"{picture.relative_to(ROOT)}  {picture.stat().st_size // 1000} kB")
            for panel in empty:
                print(f"    nothing in {panel}")


def reduced(picture: bytes) -> bytes:
    """Return a PNG with a palette."""
    return subprocess.run(["pngquant", str(COLORS), "-"], input=picture, stdout=subprocess.PIPE, check=True).stdout


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """Serve the page, Grafana's icons and the dashboards on this machine, and yield the address."""
    app = web.Application()

    async def index(_: web.Request) -> web.FileResponse:
        return web.FileResponse(BUILD / "dist" / "index.html")

    app.router.add_get("/", index)
    app.router.add_static("/assets", BUILD / "dist" / "assets")
    app.router.add_static("/public/build/img", BUILD / "node_modules" / "@grafana" / "ui" / "dist" / "public" / "img")
    app.router.add_static("/dashboards", HERE.parent)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


class Page:
    """One tab of Chromium, by the DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._id = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the answer to one command. Raises RuntimeError when it is an error."""
        self._id += 1
        await self._socket.send_json({"id": self._id, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json(timeout=PAGE_SECONDS)
            if message.get("id") == self._id:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result

    async def evaluate(self, expression: str) -> Any:
        """Return the value of *expression* in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def open(self, url: str) -> list[str]:
        """Open *url*, wait until it is drawn, and return the panels that are empty."""
        await self._resize(1000)
        await self.call("Page.navigate", url=url)
        deadline = time.monotonic() + PAGE_SECONDS
        while not (ready := await self.evaluate("window.ready")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} is not drawn after {PAGE_SECONDS:.0f} s")
            await asyncio.sleep(0.2)
        if "failed" in ready:
            raise RuntimeError(f"{url}: {ready['failed']}")
        empty: list[str] = ready["empty"]
        return empty

    async def photograph(self) -> bytes:
        """Return the whole page as PNG."""
        await self._resize(await self.evaluate("document.getElementById('dashboard').offsetHeight"))
        await asyncio.sleep(1)
        answer = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(answer["data"])

    async def _resize(self, height: int) -> None:
        size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """Start Chromium with a profile in *folder*, and yield its tab."""
    profile = folder / "chromium"
    with (folder / "chromium.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *CHROMIUM, f"--user-data-dir={profile}", "about:blank", stdout=log, stderr=log
        )
    try:
        port = await _debugging_port(profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                [tab] = [one for one in await answer.json() if one["type"] == "page"]
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                yield page
                await page.call("Browser.close")
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _debugging_port(file: Path) -> int:
    deadline = time.monotonic() + PAGE_SECONDS
    while not (text := _read(file)):
        if time.monotonic() > deadline:
            raise TimeoutError("Chromium did not start")
        await asyncio.sleep(0.1)
    return int(text.split()[0])


def _read(file: Path) -> str:
    return file.read_text("utf-8") if file.exists() else ""


if __name__ == "__main__":
    main()
