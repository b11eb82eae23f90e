"""The docs in a real browser: no broken link, no request to another host, no raw markup, search."""

import functools
import http.server
import json
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

import pytest
from browser import axe, resize
from loopback import listening
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parents[1]
RUNS = [ROOT / "outputs" / name for name in ("kwanzaa-demo-cpu", "smoke")]
LOOK = """
const seen = element => { const box = element.getBoundingClientRect(); return box.width > 1 && box.height > 1; };
return {
  links: [...document.querySelectorAll('a[href]')].map(link => link.href),
  ids: [...document.querySelectorAll('[id]')].map(element => element.id),
  title: document.title,
  heading: (document.querySelector('h1') || {}).innerText || '',
  text: (document.querySelector('main') || document.body).innerText,
  images: [...document.images].filter(image => !(image.complete && image.naturalWidth > 0 && seen(image))).map(image => image.src.slice(0, 80)),
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
};"""

pytestmark = pytest.mark.docs


class Quiet(http.server.SimpleHTTPRequestHandler):
    "Serves a folder and says nothing; browsers ask each host for an icon, which pages of a report do not name."

    def do_GET(self):
        if self.path == "/favicon.ico":
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@contextmanager
def served(folder):
    "Run a server of a folder on this machine; its address."
    with listening(functools.partial(Quiet, directory=str(folder))) as address:
        yield f"{address}/"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built from this checkout and the reports of the runs that there are, and its address."
    folder = tmp_path_factory.mktemp("docs") / "site"
    runs = [run for run in RUNS if (run / "notebooks").is_dir()]
    named = [word for run in runs for word in ("--run", str(run))]
    done = subprocess.run([sys.executable, ROOT / ".ci" / "docs.py", "--output", folder,
                           *named], cwd=ROOT, check=False, capture_output=True, text=True,
                          timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout, done.stdout
    with served(folder) as address:
        yield folder, address, runs


def asked_for(driver):
    "Addresses that the browser asked for since the last call."
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events
            if event["method"] == "Network.requestWillBeSent"]


def look(driver, address, width):
    "What stands on a page at a width in pixels, and what its loading did."
    resize(driver, width)
    driver.get(address)
    WebDriverWait(driver, 60).until(lambda it: it.execute_script("return document.readyState === 'complete' && document.body !== null"))
    found = driver.execute_script(LOOK)
    found["console"] = [entry["message"] for entry in driver.get_log("browser")
                        if entry["level"] in ("SEVERE", "WARNING")]
    found["elsewhere"] = [url for url in asked_for(driver) if urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname != "127.0.0.1"]
    return found


def walk(driver, address):
    "Every page that can be reached from the first, by its path, and what is wrong."
    pages, waiting, problems, targets = {}, ["index.html"], [], []
    while waiting:
        path = waiting.pop()
        page = pages[path] = look(driver, address + path, 390 if len(pages) % 2 else 1280)
        raw = re.findall(r"^\s*#\s*\|.*|\[`\w+`\]\(.*", page["text"], re.MULTILINE)
        for kind, what in (("console", page["console"]), ("another host", page["elsewhere"]),
                           ("not visible", page["images"]), ("directive", raw),
                           ("wider than the screen", [page["wide"]] if page["wide"] > 0 else []),
                           ("without a title",
                            [] if page["title"].strip() and page["heading"].strip() else [path])):
            problems += [f"{path}: {kind}: {one}" for one in what]
        for link in page["links"]:
            target, anchor = urldefrag(link)
            if not target.startswith(address):
                continue
            name = target.removeprefix(address) or "index.html"
            name = name + "index.html" if name.endswith("/") else name
            targets.append((path, name, anchor))
            if name.endswith(".html") and name not in pages and name not in waiting:
                waiting.append(name)
    for path, name, anchor in targets:
        if anchor and anchor not in pages.get(name, {}).get("ids", [anchor]):
            problems.append(f"{path}: link to {name}#{anchor}, which is not there")
    return pages, sorted(set(problems))


def test_walk_sees_what_is_wrong(browser, tmp_path):
    (tmp_path / "index.html").write_text("""<title>first</title><h1>First</h1><main><pre>#| export</pre><pre>a # [`x`](y.html)</pre><a href="gone.html">x</a>
        <a href="other.html#nowhere">y</a><img src="http://example.org/a.png"><div style="width:3000px">wide</div>
        <script>console.error("broken")</script></main>""", encoding="utf-8")
    (tmp_path / "other.html").write_text("<main><p>no title</p></main>", encoding="utf-8")
    with served(tmp_path) as address:
        pages, problems = walk(browser, address)
    assert set(pages) == {"index.html", "other.html", "gone.html"}
    for part in ("index.html: directive: #| export", "index.html: directive: [`x`]", "index.html: another host: http://example.org/a.png", "index.html: not visible",
                 "index.html: wider than the screen", "broken", "gone.html: console", "other.html#nowhere", "other.html: without a title"):
        assert [problem for problem in problems
                if part in problem], f"{part} was not seen in {problems}"


def test_every_page_is_whole(browser, site):
    folder, address, runs = site
    pages, problems = walk(browser, address)
    assert not problems, "\n".join(problems)
    built = {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")
             if "site_libs" not in path.parts}
    assert built == set(pages), f"not reached by links: {sorted(built - set(pages))}"
    notebooks = {path.relative_to(ROOT / "nbs").with_name(re.sub(r"^\d+[a-z]?_", "", path.stem) + ".html").as_posix() for path in (ROOT / "nbs").rglob("*.ipynb")}
    assert notebooks <= built
    assert all(f"reports/{run.name}/{name}" in built for run in runs
               for name in ("index.html", "01_data.html"))
    if not runs:
        print("not run: no executed reports to look at; make smoke leaves some")


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
@pytest.mark.parametrize("name", ["index.html", "guides/results.html", "guides/tutorial.html", "data/corpus.html"])
def test_axe_finds_nothing_grave(browser, site, name, width, scheme):
    "Contrast, keyboard, names; the order of headings, which smalldocs makes of signatures, is not grave."
    found = [one for one in axe(browser, site[1] + name, width, scheme) if not one.startswith(("moderate", "minor"))]
    assert not found, "\n".join(found)


def test_the_library_has_signatures_and_figures(browser, site):
    _, address, _ = site
    page = look(browser, address + "core/config.html", 1280)
    assert "load_config" in page["ids"] and "source" in page["ids"]
    assert "a YAML file" in page["text"], "parameters are not described"
    browser.get(address + "evaluate/figures.html")
    assert browser.execute_script("return [...document.images].filter(image => image.naturalWidth > 200).length") > 0


def test_search_finds(browser, site):
    from selenium.webdriver.common.by import By

    _, address, _ = site
    look(browser, address + "index.html", 1280)
    field = next(box for box in browser.find_elements(By.CSS_SELECTOR, ".smalldocs-search input")
                 if box.is_displayed())
    field.send_keys("Wilson interval")
    results = WebDriverWait(browser, 20).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "a.search-result"))
    found = [result.get_attribute("href") for result in results]
    assert any("/core/stats.html" in link for link in found), found
    browser.get(next(link for link in found if "/core/stats.html" in link))
    assert "Wilson" in browser.execute_script("return document.body.innerText")
