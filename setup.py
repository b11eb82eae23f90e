"""Build the package; name, version and dependencies come from settings.ini."""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
parser = ConfigParser(interpolation=None, delimiters=["="])
parser.read(HERE / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
readme = HERE / "README.md"

# What an installed package needs besides its modules: the stage notebooks that `kwanzaa run` executes,
# and the configs and data that `kwanzaa init` copies. It is installed in kwanzaa_nb/project.
# MANIFEST.in lists the same files for the source distribution.
SHIPPED = ("nbs/0[1-4]*_*.ipynb", "configs/**/*.yaml", "configs/**/*.json", "data/corpus/*", "data/questions/*", "data/benchmarks/*")


class BuildWithProject(build_py):
    """Copy these files into the package; an editable install finds them in the checkout."""

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False):
            return
        for path in (path for pattern in SHIPPED for path in HERE.glob(pattern) if path.is_file()):
            target = Path(self.build_lib, settings["lib_path"], "project", path.relative_to(HERE))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def listed(*names: str) -> list:
    """Return the requirements of several keys of settings.ini, each once."""
    return list(dict.fromkeys(word for name in names for word in settings[f"{name}_requirements"].split()))


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else settings["description"],
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license={"apache2": "Apache-2.0"}[settings["license"]],
    keywords=settings["keywords"],
    packages=find_packages(include=[settings["lib_path"], settings["lib_path"] + ".*"], exclude=[settings["lib_path"] + ".bench"]),
    package_data={settings["lib_path"]: ["templates/*"]},
    python_requires=">=" + settings["min_python"],
    install_requires=settings["requirements"].split(),
    extras_require={
        "train": listed("train"),
        "eval": listed("eval"),
        "server": listed("server"),
        "score": listed("score"),
        "inspect": listed("inspect"),
        "gguf": listed("gguf"),
        "documents": listed("documents"),
        "chat": listed("chat"),
        "embeddings": listed("embeddings"),
        "docs": listed("docs"),
        "dev": listed("train", "eval", "server", "gguf", "documents", "chat", "docs", "dev"),
    },
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{settings['lib_path']}={settings['lib_path']}._modidx:d"],
        "inspect_ai": ["kwanzaa_nb=kwanzaa_nb.evaluate.inspect_task"],  # inspect eval kwanzaa_nb/cited_answers
    },
    cmdclass={"build_py": BuildWithProject},
    zip_safe=False,
)
