"""Build the docs: nbdev prepares the notebooks, smalldocs lays them out, executed reports are added."""

import argparse
import inspect
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path, PurePosixPath

from fastcore import docments
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from smalldocs.config import load
from smalldocs.site import Page, Site

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.core.errors import KwanzaaError
from kwanzaa_nb.report.runs import overview_page, overview_rows
from kwanzaa_nb.core.manifest import NOTEBOOKS, read_manifest, stage_table
from kwanzaa_nb.core.results import metrics_table
from kwanzaa_nb.core.results_file import load_results

ROOT = Path(__file__).resolve().parents[1]


def signature_of(symbol, **options):
    "Return a signature; types that are imported for type checkers alone stay text."
    try:
        return inspect.signature(symbol, **options)
    except NameError:
        return inspect.signature(symbol)


docments.signature = signature_of
PAGES = {"report.html": "The run on one page", "evaluation/index.html": "Every record, and what each arm wrote"}
BADGE = re.compile(r"\[!\[Open In Colab\]\(https://[^)]*\.svg\)\]\(([^)]*)\)")
NOTEBOOK = re.compile(r"`nbs/((?:\w+/)?\w+\.ipynb)`")
NO_REPORTS = "# No reports yet\n\nThe demo had not run where this site was built. `make demo` runs it, and `make docs` then shows its executed notebooks.\n"
NUMBER = re.compile(r"^\d+_")
HEAD = re.compile(r"# [^\n]+\n+> ([^\n]+)\n*")
PRIVATE = re.compile(r"\[(`_\w+`)\]\([^)\s]*#_\w+\)")  # a link of nbdev to a name that no page shows
FENCE, LINK = re.compile(r"^```.*?^```", re.M | re.S), re.compile(r"\[`([^`]+)`\]\([^)]*\)")


REACHED = (  # what a keyboard or a screen reader needs, and smalldocs does not write
    (re.compile(r'<(pre|div class="sd-table"|table class="caption-top table")(?=[ >])'), r'<\1 tabindex="0"'),  # what scrolls can be reached
    (re.compile(r'role="navigation"(?= aria-expanded)'), 'role="button"'),
    (re.compile(r'<nav class="navbar'), '<nav aria-label="site" class="navbar'),
    (re.compile(r'<nav class="quarto-secondary-nav"'), '<nav aria-label="place" class="quarto-secondary-nav"'),
    (re.compile(r'<nav id="quarto-sidebar"'), '<nav id="quarto-sidebar" aria-label="all pages"'),
    (re.compile(r'<div class="toc-actions"'), '<div role="complementary" aria-label="source" class="toc-actions"'))


class NamedSite(Site):
    "A site that names a page by its `output-file`, as Quarto does: 01_data.ipynb becomes data.html."

    def read(self, src: PurePosixPath) -> Page:
        "Read a page, and set its output file."
        page = super().read(src)
        page.out = src.with_name(str(page.front.get("output-file") or page.out.name))
        return page

    def find_page(self, target: PurePosixPath) -> "Page | None":
        "Find a page by its source or by its output file."
        return super().find_page(target) or next((page for page in self.pages.values() if page.out == target), None)


def on_site(
    text: str,  # source of a Markdown cell, or Markdown in an output
    site: str,  # address where the site is published, ending in a slash
    blob: str,  # address of files of the project, ending in a slash
    up: str = "",  # from the page to the site's root: "" or "../../"
) -> str:
    "Point links to pages of this site, link notebooks by name, and replace badges of other hosts."
    text = BADGE.sub(r"[Open in Colab](\1){.btn .btn-outline-primary .btn-sm}", text)
    for published in (f"{blob}nbs/", f"{blob.replace('/blob/', '/raw/')}nbs/", site):
        text = text.replace(f"]({published}", f"]({up}")
    text = NOTEBOOK.sub(lambda found: f"[`{found[1].removesuffix('.ipynb')}`]({up}{found[1]})", text)
    text = PRIVATE.sub(r"\1", text)
    return FENCE.sub(lambda block: LINK.sub(r"\1", block[0]), text)  # nbdev links names in code too


def rewrite(
    path: Path,  # a notebook, changed in place
    **places: str,  # see `on_site`
) -> None:
    "Make a notebook's Markdown fit the site."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = on_site("".join(cell["source"]), **places)
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = on_site("".join(output["data"]["text/markdown"]), **places)
    path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")


def report_index(
    run: Path,  # the run folder
    pages: dict,  # title by file, for what is there
) -> str:  # Markdown
    "Write the first page of a run's reports: results, links, stages."
    metrics = load_results(run)
    results = metrics_table(metrics)._repr_markdown_() if metrics else "No results: the stage evaluate has not written any."
    links = [f"- [{name}]({name}.ipynb)" for name in NOTEBOOKS.values() if (run / "notebooks" / f"{name}.ipynb").exists()]
    links += [f"- [{title}]({name})" for name, title in pages.items()]
    return "\n".join([
        "---", f'title: "Reports of {run.name}"', "output-file: index.html", "---", "",
        f"What the run `{run.name}` left: the stage notebooks as they were executed, and the pages that they wrote.", "",
        results, "", *links, "", "## Stages", "", stage_table(run)._repr_markdown_(), ""])


def add_reports(
    run: Path,  # the run folder
    folder: Path,  # where the site's sources are
    **places: str,  # see `on_site`
) -> None:
    "Add a run's executed notebooks and pages to the sources."
    reports = folder / "reports" / run.name
    (reports / "evaluation").mkdir(parents=True)
    pages = {name: title for name, title in PAGES.items() if (run / name).exists()}
    for name in (*pages, "evaluation/metrics.json"):  # the card links to the metrics
        if (run / name).exists():
            shutil.copyfile(run / name, reports / name)
    for name in NOTEBOOKS.values():
        if (run / "notebooks" / f"{name}.ipynb").exists():
            path = Path(shutil.copyfile(run / "notebooks" / f"{name}.ipynb", reports / f"{name}.ipynb"))
            notebook = json.loads(path.read_text(encoding="utf-8"))
            cells = [cell for cell in notebook["cells"] if cell["cell_type"] != "raw"]
            told = HEAD.fullmatch("".join(cells[0]["source"]))
            head = f'---\ntitle: "{run.name}: {NUMBER.sub("", name)}"\n' + (f"description: {json.dumps(told[1])}\n" if told else "") + "---\n"
            notebook["cells"] = [{"cell_type": "raw", "metadata": {}, "source": head}, *cells[bool(told):]]
            path.write_text(json.dumps(notebook).replace("](notebooks/", "]("), encoding="utf-8")  # the card's links to reports
            rewrite(path, up="../../", **places)
    (reports / "index.md").write_text(report_index(run, pages), encoding="utf-8")


def build(
    output: Path,  # the site's folder; replaced as a whole once the new site is there
    runs: "list[Path]",  # run folders whose reports belong to the site
) -> Site:
    "Build the site."
    settings = get_config(path=ROOT)
    places = {"site": f"{settings.doc_host}{settings.doc_baseurl}/", "blob": f"{settings.git_url}/blob/{settings.branch}/"}
    refresh_quarto_yml()
    with tempfile.TemporaryDirectory() as copy:
        sources = Path(shutil.copytree(ROOT / "nbs", Path(copy) / "nbs", ignore=shutil.ignore_patterns(".*")))
        for path in sources.rglob("*.ipynb"):
            rewrite(path, up="../" * (len(path.relative_to(sources).parts) - 1), **places)
        folder = proc_nbs(str(sources), n_workers=2, force=True)
        shutil.copytree(sources / "images", folder / "images", dirs_exist_ok=True)
    for path in folder.rglob("*.ipynb"):
        rewrite(path, up="../" * (len(path.relative_to(folder).parts) - 1), **places)  # nbdev links to the published site
    for run in runs:
        add_reports(run, folder, **places)
    if not runs:
        (folder / "reports").mkdir()
        (folder / "reports" / "index.md").write_text(NO_REPORTS, encoding="utf-8")
    site = NamedSite(load(folder), quiet=True)
    site.out = output.with_name(output.name + ".part")
    shutil.rmtree(site.out, ignore_errors=True)
    site.build()
    for path in (site.out / page.out for page in site.pages.values()):
        text = path.read_text(encoding="utf-8")
        for pattern, better in REACHED:
            text = pattern.sub(better, text)
        path.write_text(text, encoding="utf-8")
    if rows := [row for run in runs for row in overview_rows([run], run.parent, ROOT) if row["report"]]:
        (site.out / "reports" / "index.html").write_text(overview_page(rows), encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    site.out.rename(output)
    return site


def main() -> int:
    "Build the site, and print what was left out."
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--output", type=Path, default=ROOT / "_docs", help="the site's folder (default: _docs)")
    options.add_argument("--run", type=Path, action="append", help="a run folder whose reports are shown (default: the demo's)")
    given = options.parse_args()
    wanted = given.run or [ROOT / load_config(ROOT / "configs" / "demo.cpu.yaml").run.output_dir]
    runs = [run for run in wanted if read_manifest(run)["stages"] and (run / "notebooks").is_dir()]
    for run in wanted:
        if run not in runs:
            print(f"no reports of {run.name}: no stage has run in {run}; `make demo` runs the demo")
    site = build(given.output.resolve(), runs)
    for warning in (text for text in site.warnings if "output-file is not read" not in text):  # `NamedSite` reads it
        print(f"warning: {warning}")
    print(f"{len(site.pages)} pages in {given.output}; to read them with search: {sys.executable} -m http.server --directory {given.output}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KwanzaaError as error:
        sys.exit(str(error))
