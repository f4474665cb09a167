"""What tests share lives in `tests/support`: no module of tests imports a test file or a conftest."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
MODULES = [path for path in TESTS.rglob("*.py") if path != Path(__file__)]


def imported(source: str) -> Iterator[str]:
    """Modules that this source imports, in strings that are programs too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            yield from imported_by_program(node.value)


def imported_by_program(text: str) -> Iterator[str]:
    try:
        yield from imported(text)
    except SyntaxError:
        return  # a sentence


def is_private(module: str) -> bool:
    parts = module.split(".")
    return parts[0] == "tests" and any(part == "conftest" or part.startswith("test_") for part in parts)


def test_no_module_imports_from_a_test_file_or_a_conftest() -> None:
    found = {path.relative_to(TESTS).as_posix(): imported(path.read_text()) for path in MODULES}
    assert len(found) > 100
    assert [(path, each) for path, modules in found.items() for each in modules if is_private(each)] == []


def test_imports_of_test_files_are_recognised_in_every_form() -> None:
    forms = (
        "from tests.service.test_auth import as_user",
        "import tests.conftest",
        "def inner():\n    from tests.service import conftest",
        "PROGRAM = 'from tests.workers.test_stages import context'",
    )
    assert all(any(map(is_private, imported(form))) for form in forms)
    assert not any(map(is_private, imported("from tests.support.builders import document")))
