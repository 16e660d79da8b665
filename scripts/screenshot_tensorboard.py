"""Make docs/images/tensorboard.png: the runs of ``make run``, as TensorBoard shows them.

    make run && .venv/bin/python scripts/screenshot_tensorboard.py

The tests use the same two tools: a TensorBoard server, and a page in headless Chromium, controlled through a pipe (the
DevTools protocol), because TensorBoard draws inside shadow roots, which a page's dump lacks.
"""

import argparse
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60.0
"""Seconds to wait for a condition."""
VIEW = "?smoothing=0&tagFilter=^(over_training_ms/)?(loss|accuracy)/val#timeseries"
"""Validation loss and accuracy, against steps and against training time."""
CURVES = "document.querySelectorAll('scalar-card line-chart svg path[style*=stroke]')"
CLOSE = "document.querySelector('button[aria-label=\"Close side pane\"]')"


@contextmanager
def tensorboard(logdir: Path, *options: str) -> Iterator[str]:
    """Serve a folder of runs on a free local port.

    Args:
        logdir: the folder.
        *options: more of TensorBoard's own.

    Yields:
        The address, such as ``http://127.0.0.1:6006/``.

    Raises:
        RuntimeError: the server ended at once.
    """
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            said = []
            for line in server.stderr:
                said.append(line)
                if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                    yield found[0]
                    return
            raise RuntimeError(f"TensorBoard did not start:\n{''.join(said)}")
        finally:
            server.terminate()


class Page:
    """A page in headless Chromium.

    Args:
        width: of the window, in pixels.
        height: of the window, in pixels.

    Attributes:
        errors: messages of the console at level error.
    """

    def __init__(self, width: int, height: int):
        assert CHROMIUM is not None
        self.errors: list[str] = []
        self._session: dict[str, str] = {}
        self._count = 0
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-proxy-server"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={self._profile.name}"]
        options += ["--disable-3d-apis", f"--window-size={width},{height}"]  # without WebGL, curves are SVG
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        self._out, self._in = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
        pipes = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'  # where Chromium looks for them
        words = ["bash", "-c", pipes, CHROMIUM, *options]
        self._process = subprocess.Popen(words, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)

    def __enter__(self) -> Self:
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
            self._session = {"sessionId": attached["sessionId"]}
            for domain in ("Runtime", "Log", "Page"):
                self._call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._in.close()
        self._profile.cleanup()

    def open(self, address: str, ready: str) -> None:
        """Go to a page and wait until it is ready.

        Args:
            address: of the page.
            ready: an expression in JavaScript that becomes true.

        Raises:
            TimeoutError: it did not become true within `PATIENCE`.
        """
        self._call(
            "Page.navigate", url="about:blank"
        )  # otherwise another fragment of the same page would not reload it
        self._call("Page.navigate", url=address)
        self.wait(ready)

    def wait(self, ready: str) -> None:
        """Wait until a condition holds.

        Args:
            ready: an expression in JavaScript that becomes true.

        Raises:
            TimeoutError: it did not become true within `PATIENCE`.
        """
        end = time.monotonic() + PATIENCE
        while self.ask(ready) is not True:
            if time.monotonic() > end:
                raise TimeoutError(f"After {PATIENCE:.0f} s this is not true: {ready}; errors: {self.errors}")
            time.sleep(0.1)

    def ask(self, expression: str) -> Any:
        """The value of an expression in JavaScript, or None where it throws."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def emulate(self, width: int, height: int, scheme: str) -> None:
        """Emulate another device.

        Args:
            width: of the window, in pixels.
            height: of the window, in pixels.
            scheme: ``light`` or ``dark``, the system's preference.
        """
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 640
        )
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self) -> bytes:
        """The window's content as PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot")["data"])

    def whole_page(self, tallest: int) -> bytes:
        """The page from its top, as PNG.

        Args:
            tallest: pixels of height at most.
        """
        for top in (*range(0, tallest, 800), 0):  # charts are drawn when they approach the window
            self.ask(f"scrollTo(0, {top})")
            time.sleep(0.03)
        width, height = self.ask("[innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, tallest), "scale": 1}
        data = self._call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        return base64.b64decode(data)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters, **self._session}
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("Chromium ended")
            text += byte
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        said = event.get("params", {})
        if event["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(said["exceptionDetails"]))
        elif event["method"] == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(part.get("value")) for part in said["args"]))
        elif event["method"] == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(said["entry"]["text"])


def main() -> None:
    """Serve, open, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logdir", type=Path, nargs="?", default=Path("runs/quickstart"), help="a folder of runs")
    parser.add_argument("--out", type=Path, default=Path("docs/images/tensorboard.png"), help="file of the picture")
    args = parser.parse_args()
    count = 4 * len({file.parent for file in args.logdir.rglob("events.out.tfevents.*")})
    with tensorboard(args.logdir) as address, Page(1200, 1160) as page:
        page.open(address + VIEW, f"{CURVES}.length > 0")
        page.ask(f"{CLOSE}.click()")
        page.wait(f"!{CLOSE} && {CURVES}.length == {count}")
        time.sleep(1)  # curves are resized with a delay
        args.out.write_bytes(page.picture())
    print(args.out)


if __name__ == "__main__":
    main()
