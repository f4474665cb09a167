"""Definitions of this package, with all that they use of it, as one file that imports nothing of it.

The text is that of the sources, so there is no second copy of an operator to be kept equal.
"""

import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

PACKAGE = __name__.split(".", maxsplit=1)[0]
GIVEN = "given"
"""Origin of a name that is defined by a text."""


@dataclass(frozen=True)
class _Source:
    """A module's top-level definitions, and what it imports, by name."""

    module: str
    lines: list[str]
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    """Name -> its statement, and the docstring below an assignment."""
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Name -> (module, its name there, or None for the module itself)."""

    @classmethod
    def read(cls, module: str) -> "_Source":
        text = Path(str(import_module(module).__file__)).read_text(encoding="utf-8")
        source, body = cls(module, text.splitlines()), ast.parse(text).body
        for statement, following in zip(body, [*body[1:], None], strict=True):
            source._take(statement, following)
        return source

    def _take(self, statement: ast.stmt, following: ast.stmt | None) -> None:
        if isinstance(statement, ast.Import):
            self.imports.update({each.asname or each.name: (each.name, None) for each in statement.names})
        elif isinstance(statement, ast.ImportFrom):
            found = {each.asname or each.name: (str(statement.module), each.name) for each in statement.names}
            self.imports.update(found)
        else:
            described = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            whole = [statement, following] if described and following is not None else [statement]
            self.definitions.update(dict.fromkeys(_bound(statement), whole))

    def text(self, statements: Iterable[ast.stmt]) -> str:
        parts = []
        for statement in statements:
            decorators = [each.lineno for each in getattr(statement, "decorator_list", [])]
            first = min([statement.lineno, *decorators])
            parts += self.lines[first - 1 : statement.end_lineno]
        return "\n".join(parts)


def _bound(statement: ast.stmt) -> list[str]:
    """Names that a top-level statement defines."""
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return [statement.name]
    if isinstance(statement, ast.Try):
        inner = [name for each in statement.body for name in _bound(each)]
        return [
            *inner,
            *(name for handler in statement.handlers for each in handler.body for name in _bound(each)),
        ]
    if isinstance(statement, ast.ImportFrom):
        return [each.asname or each.name for each in statement.names]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [
        each.id for target in targets if target for each in ast.walk(target) if isinstance(each, ast.Name)
    ]


class Writer:
    """Collects definitions, those that others use first."""

    def __init__(self) -> None:
        self._sources = dict[str, _Source]()
        self._origins = dict[str, str]()
        """Name -> where it comes from."""
        self._imports = dict[str, tuple[str, str | None]]()
        self._texts = list[str]()

    def add(self, module: str, name: str) -> None:
        """Add what `name` means in a module, and all that it uses of this package.

        Raises ValueError for a name that has another meaning in the file already.
        """
        if module not in self._sources:
            self._sources[module] = _Source.read(module)
        source = self._sources[module]
        if name in source.definitions:
            self._define(source, name)
        elif name in source.imports:
            self._import(name, *source.imports[name])

    def assign(self, name: str, text: str) -> None:
        """Define `name` by this text instead of by what the sources have."""
        self._origins[name] = GIVEN
        self._texts.append(text)

    def text(self, docstring: str) -> str:
        """The whole file."""
        return "\n\n\n".join([f'"""{docstring}"""\n\n{self._import_text()}', *self._texts]) + "\n"

    def _define(self, source: _Source, name: str) -> None:
        if self._is_known(name, source.module):
            return
        statements = source.definitions[name]
        self._origins |= dict.fromkeys(_bound(statements[0]), source.module)
        for used in _used(statements):
            self.add(source.module, used)
        self._texts.append(source.text(statements))

    def _import(self, name: str, module: str, there: str | None) -> None:
        if module.split(".", maxsplit=1)[0] != PACKAGE:
            if not self._is_known(name, f"{module}.{there}"):
                self._imports[name] = (module, there)
        elif there == name:
            self.add(module, name)
        else:
            raise ValueError(f"{name} of {module} is imported under another name, which is not written out")

    def _is_known(self, name: str, origin: str) -> bool:
        before = self._origins.get(name)
        if before not in (None, GIVEN, origin):
            raise ValueError(f"{name} is defined in {before} and in {origin}; one file holds one of them")
        self._origins.setdefault(name, origin)
        return before is not None

    def _import_text(self) -> str:
        modules = [f"import {module}" for module, there in self._imports.values() if there is None]
        names = dict[str, list[str]]()
        for name, (module, there) in self._imports.items():
            if there is not None:
                names.setdefault(module, []).append(name if name == there else f"{there} as {name}")
        members = [f"from {module} import {', '.join(sorted(each))}" for module, each in names.items()]
        lines = sorted([*modules, *members], key=lambda line: (line.startswith("from"), line.lower()))
        standard = [line for line in lines if line.split()[1].split(".")[0] in sys.stdlib_module_names]
        others = [line for line in lines if line not in standard]
        return "\n".join([*standard, "", *others])


def _used(statements: Iterable[ast.stmt]) -> list[str]:
    names = [node.id for each in statements for node in ast.walk(each) if isinstance(node, ast.Name)]
    return list(dict.fromkeys(names))
