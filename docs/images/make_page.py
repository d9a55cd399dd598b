"""Makes page-wide.png and page-phone.png: the page of `shaderfusion serve` in chromium, with pictures by `emoji`.

.venv/bin/python docs/images/make_page.py
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

__all__: list[str] = []

HERE = Path(__file__).parent
PROMPTS = ("green apple", "snowman", "pizza", "guitar", "robot", "rocket")
SCREENS: dict[str, dict[str, Any]] = {
    "page-wide.png": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "page-phone.png": {
        "viewport": {"width": 390, "height": 844},
        "color_scheme": "dark",
        "is_mobile": True,
        "has_touch": True,
    },
}


def main() -> None:
    command = [sys.executable, "-m", "shaderfusion", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout
        url = server.stdout.readline().strip()
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name in SCREENS:
            take(chromium, url, name)
        chromium.close()
        server.terminate()


def take(browser: Browser, url: str, name: str) -> None:
    """A screenshot after a picture of each prompt, in 256 colours."""
    with browser.new_context(**SCREENS[name]) as context:
        page = context.new_page()
        page.goto(url)
        expect(page.locator("#width")).not_to_have_value("")
        for prompt in PROMPTS if name == "page-wide.png" else PROMPTS[-1:]:
            make(page, prompt)
        page.evaluate("document.activeElement.blur()")
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=HERE / name)
    with Image.open(HERE / name) as shot:
        whole = shot.convert("RGB")
        whole.quantize(palette=whole.quantize(256), dither=Image.Dither.FLOYDSTEINBERG).save(HERE / name, optimize=True)


def make(page: Page, prompt: str) -> None:
    page.locator("#prompt").fill(prompt)
    page.locator("#seed").fill("0")
    page.locator("#preview_every").evaluate("(input) => { input.value = 0; }")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#progress-text")).to_have_text(re.compile("^Done"), timeout=300_000)


if __name__ == "__main__":
    main()
