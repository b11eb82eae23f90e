"""Fail if the package is not what the notebooks export or a notebook is not clean; change nothing."""

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def changed(left: Path, right: Path, pattern: str) -> list[str]:
    """Return the paths of files that differ or exist in one folder only."""
    names = sorted({path.relative_to(folder).as_posix() for folder in (left, right) for path in folder.rglob(pattern)})
    return [name for name in names if not ((left / name).is_file() and (right / name).is_file()
                                           and filecmp.cmp(left / name, right / name, shallow=False))]


def main() -> int:
    """Export and clean a copy, and compare it with the original."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy.mkdir()
        for name in ("nbs", "kwanzaa_nb"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "settings.ini", copy)
        for path in (copy / "kwanzaa_nb").rglob("*.py"):
            if path.name not in ("__init__.py", "__main__.py"):  # those are written by hand
                path.unlink()
        for command in ("nbdev_export", "nbdev_clean"):
            subprocess.run([BIN / command], cwd=copy, check=True)
        package, notebooks = changed(ROOT / "kwanzaa_nb", copy / "kwanzaa_nb", "*.py"), changed(ROOT / "nbs", copy / "nbs", "*.ipynb")
    if package:
        print(f"not what the notebooks export: {', '.join(package)}; run nbdev_export")
    if notebooks:
        print(f"not clean: {', '.join(notebooks)}; run nbdev_clean")
    if not package + notebooks:
        print("package and notebooks agree")
    return bool(package + notebooks)


if __name__ == "__main__":
    sys.exit(main())
