"""Chromium without a window, and what it asked for and complained of."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers.app import PATIENCE


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """Selenium's driver of it; profile: an empty folder. Skips the test where there is none."""
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("needs selenium: pip install selenium")
    program, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or chromedriver is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    from selenium import webdriver

    chrome = webdriver.ChromeOptions()
    chrome.binary_location = program
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "use-fake-ui-for-media-stream", "use-fake-device-for-media-stream",
        "window-size=1280,1200", f"user-data-dir={profile}",
    ):  # fmt: skip
        chrome.add_argument(f"--{flag}")
    chrome.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=chrome, service=webdriver.ChromeService(chromedriver))
    driver.command_executor.client_config.timeout = 120 * PATIENCE
    try:
        driver.set_script_timeout(20 * PATIENCE)
        yield driver
    finally:
        driver.quit()


def asked_for(browser: Any) -> set[str]:
    """The addresses that its pages have asked for since the last call."""
    urls = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] != "Network.requestWillBeSent":
            continue
        # Chromium's own pages ask for what they like.
        if not message["params"]["documentURL"].startswith("chrome"):
            urls.add(message["params"]["request"]["url"])
    return urls
