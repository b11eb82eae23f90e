"""Point badges, links and the Colab install command at the repository that settings.ini names.

A fork changes `git_url` (and `branch`) in settings.ini, runs this, then `nbdev_export`.
"""

import re
import sys
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = r"[\w.-]+/[\w.-]+?"
PLACES = (  # of the repository in a text: what stands before it, and after it
    re.compile(rf"(colab\.research\.google\.com/github/|https://github\.com/){NAME}(/(?:blob|raw)/)[\w.-]+(?=/nbs/)"),
    re.compile(r"(git\+https://github\.com/)[\w.-]+/[\w.-]+()"),
    re.compile(rf"(\[Kwanzaa Notebooks\]\(https://github\.com/){NAME}()(?=\))"))


def named(root: Path = ROOT) -> tuple[str, str]:
    "Return owner/name and the branch that settings.ini names."
    settings = ConfigParser(interpolation=None, delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    return settings["DEFAULT"]["git_url"].removeprefix("https://github.com/").strip("/"), settings["DEFAULT"]["branch"]


def pointed(text: str, repository: str, branch: str) -> str:
    "Return a text whose links to this project lead to a repository."
    for place in PLACES:
        text = place.sub(lambda found: found[1] + repository + found[2] + (branch if found[2] else ""), text)
    return text


def files(root: Path = ROOT) -> list[Path]:
    "Return the files that link to the project."
    return [root / "README.md", *sorted((root / "nbs").rglob("*.ipynb"))]


def main() -> int:
    "Rewrite the links, and print the files that changed."
    repository, branch = named()
    for path in files():
        text = path.read_text(encoding="utf-8")
        if (better := pointed(text, repository, branch)) != text:
            path.write_text(better, encoding="utf-8")
            print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
