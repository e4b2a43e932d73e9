"""Lists the programs: `python -m recipes`."""

import ast
import shutil
import textwrap
from pathlib import Path


def list_programs() -> dict[str, str]:
    """Returns program -> first line of its docstring, read from the source, because imports would take seconds."""
    found = {}
    for path in sorted(Path(__file__).parent.iterdir()):
        started = path / "__main__.py" if path.is_dir() else path
        described = path / "__init__.py" if path.is_dir() else path
        if path.name.startswith("_") or path.is_file() != (path.suffix == ".py") or not started.is_file():
            continue
        if "\nif __name__" in started.read_text(encoding="utf-8"):
            docstring = ast.get_docstring(ast.parse(described.read_text(encoding="utf-8"))) or ""
            found[path.stem] = docstring.partition("\n")[0]
    return found


if __name__ == "__main__":
    print("Programs (`python -m recipes.NAME --help` shows a program's options):\n")
    width = max(60, min(120, shutil.get_terminal_size().columns))
    for name, summary in list_programs().items():
        print(textwrap.fill(f"{name:18}{summary}", width, initial_indent="  ", subsequent_indent=" " * 20))
