"""The studio's page in a browser, as a user sees it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from helpers.app import wait_for


class Page:
    """The page as a user sees it."""

    def __init__(self, browser: Any, url: str, pictures: Path, *, begins_with: str) -> None:
        self.browser, self.pictures, self.url = browser, pictures, url
        self.begins_with = begins_with
        self.open()

    def open(self) -> None:
        self.browser.get(self.url)
        self.find(self.begins_with)

    def find(self, selector: str) -> Any:
        from selenium.webdriver.common.by import By

        def found() -> Any:
            return self.browser.find_elements(By.CSS_SELECTOR, selector)

        return wait_for(found, selector, seconds=60)[0]

    def seen(self, selector: str) -> str:
        """What is to be read there, or nothing. In one step: what is found may go before it is
        read."""
        script = "const e = document.querySelector(arguments[0]); return e ? e.innerText : ''"
        return str(self.browser.execute_script(script, selector))

    def type(self, name: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        field = self.find(f"#{name} textarea, #{name} input, input[aria-label={name}]")
        field.send_keys(Keys.CONTROL + "a")
        field.send_keys(Keys.BACKSPACE, text)

    def click(self, selector: str) -> None:
        element = self.find(selector)
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def upload(self, name: str, path: Path) -> None:
        self.find(f"#{name} input[type=file]").send_keys(str(path))
        self.find(f"#{name} [data-testid^=waveform]")

    def picture(self, name: str) -> None:
        """For eyes: in pytest's temporary folder."""
        time.sleep(0.3)  # what fades in
        self.browser.save_screenshot(str(self.pictures / f"{name}.png"))

    def error(self) -> str:
        """The message that is shown, which is then closed."""
        words = ".toast-message-text"
        text = str(wait_for(lambda: self.seen(words), "the words of an error", seconds=60))
        # It may go by itself meanwhile.
        close = """
            document.querySelector('[data-testid=toast-close]')?.click();
            return !document.querySelector('.toast-body')"""
        wait_for(lambda: self.browser.execute_script(close), "the end of an error")
        return text

    def gone(self, selector: str) -> None:
        script = f"return !document.querySelector('{selector}')"
        wait_for(lambda: self.browser.execute_script(script), f"the end of {selector}")

    def line(self, name: str) -> str:
        """The one line about the speech; while it is spoken, and as that fades, progress stands in
        its place."""
        place = f"#{name}_line"

        def is_whole() -> Any:
            return re.fullmatch(r"\d+\.\d\d s · .*", self.seen(place).strip())

        return str(wait_for(is_whole, f"the line of {name}", seconds=30)[0])

    def audio(self, name: str) -> tuple[float, bytes]:
        """Seconds that the browser's own decoder finds in what the player offers to download, and
        its bytes."""
        link = self.find(f"#{name} a[download]").get_attribute("href")
        script = """
            const done = arguments[1], audio = new Audio(arguments[0]);
            audio.onloadedmetadata = async () => {
                const bytes = new Uint8Array(await (await fetch(arguments[0])).arrayBuffer());
                done([audio.duration, Array.from(bytes)]);
            };
            audio.onerror = () => done([-1, []]);"""
        duration_s, content = self.browser.execute_async_script(script, link)
        return duration_s, bytes(content)
