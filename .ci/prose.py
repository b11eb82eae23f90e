"""Count how much the notebooks explain: prose words per exported line, examples per exported unit."""

import ast
import json
import re
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[1] / "nbs"
EXPORT = re.compile(r"\s*#\s*\|\s*exporti?\b")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def count(path: Path) -> tuple[int, int, int, int]:  # words, exported lines, examples, exported units
    """Count one notebook. A unit is a function or class at the top level; an example is any other code cell with an output."""
    words = lines = examples = units = 0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            words += len(source.split())
        elif cell["cell_type"] == "code" and EXPORT.match(source):
            lines += sum(bool(line.strip()) and not line.lstrip().startswith("#|") for line in source.splitlines())
            units += sum(isinstance(node, DEFINITIONS) for node in ast.parse(source).body)
        elif cell["cell_type"] == "code":
            examples += bool(cell["outputs"])
    return words, lines, examples, units


def show(name: str, counted: tuple[int, int, int, int]) -> None:
    """Print one row; a dash where nothing is exported."""
    words, lines, examples, units = counted
    shares = (f"{words / lines:.2f}" if lines else "-", f"{examples / units:.2f}" if units else "-")
    print(f"{name:32}{words:8}{lines:8}{shares[0]:>12}{examples:10}{units:8}{shares[1]:>14}")


def main() -> None:
    """Print a row for every notebook, then those that export together."""
    found = {path.relative_to(NOTEBOOKS).as_posix(): count(path) for path in sorted(NOTEBOOKS.rglob("*.ipynb"))
             if not path.relative_to(NOTEBOOKS).parts[0].startswith((".", "_"))}
    print(f"{'notebook':32}{'words':>8}{'lines':>8}{'words/line':>12}{'examples':>10}{'units':>8}{'examples/unit':>15}")
    for name, counted in found.items():
        show(name, counted)
    show("notebooks that export", tuple(map(sum, zip(*(one for one in found.values() if one[1])))))
    show("all notebooks", tuple(map(sum, zip(*found.values()))))


if __name__ == "__main__":
    main()
