"Chromium without a screen, and what axe-core finds wrong with a page in it."

import importlib.util
import shutil
from pathlib import Path

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
RUN = """const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ['violations']}).then(found => done(found.violations.map(
  one => `${one.impact}: ${one.id}: ${one.help}: ${one.nodes.slice(0, 3).map(node => node.html.slice(0, 150)).join(' | ')}`)),
  error => done([String(error)]));"""


def axe_source():
    "The script of axe-core, out of a package that is installed for it alone; skips where it is not there."
    found = importlib.util.find_spec("axe_playwright_python")
    if not found:
        pytest.skip("not run: no axe-core (make setup installs it)")
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


def start(profile):
    "Chromium in which every host but this one is unknown; skips where it is not there."
    if not (BROWSER and DRIVER):
        pytest.skip("not run: no chromium (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                 "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,900",
                 f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(300)
    return driver


def resize(driver, width):
    "Show pages at a width in pixels, as a phone does where it is small."
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600})


def axe(driver, address, width=1280, scheme="light"):
    "What axe-core finds wrong with a page at a width and in a colour scheme; nothing, if all is well."
    source = axe_source()
    resize(driver, width)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia",
                           {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    driver.get(address)
    driver.execute_script("for (const one of document.querySelectorAll('details')) one.open = true;" + source)
    found = driver.execute_async_script(RUN)
    wide = driver.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return found + ([f"{wide} pixels wider than the screen"] if wide > 0 else [])
