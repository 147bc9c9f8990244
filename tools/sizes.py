"""Prints the size of every module and of the package: a look at where the lines are.

python tools/sizes.py
"""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "retrieval_spec"


def code_lines(path: Path) -> int:
    """Returns the lines that are neither blank nor part of a docstring."""
    source = path.read_text()
    in_docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        has_body = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if has_body and ast.get_docstring(node) is not None:
            in_docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(1 for number, line in lines if line.strip() and number not in in_docstrings)


def main() -> None:
    """Prints one line a module and the total, generated code left out."""
    total = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        if "v1" in path.parts:
            continue
        lines = code_lines(path)
        total += lines
        print(f"{lines:6,}  {path.relative_to(PACKAGE)}")
    print(f"{total:6,}  in all")


if __name__ == "__main__":
    main()
