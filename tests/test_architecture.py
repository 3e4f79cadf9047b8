"""The rules of docs/architecture.md that the source shows: the order of packages, and how configs start."""

import ast
import json
import re
from pathlib import Path

import pytest
from monai.bundle import ConfigParser, ReferenceResolver

from tests.tiny_bundle import ROOT

SCRIPTS = ROOT / "scripts"
MODULES = sorted(SCRIPTS.rglob("*.py"))
PAGE = (ROOT / "docs" / "architecture.md").read_text()
# The names in the first column of the table of packages, from the ground up.
ORDER = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE, re.MULTILINE)))


def name_of(path):
    """Return the parts of the dotted name of a module of ``scripts``, without ``scripts``."""
    parts = path.relative_to(SCRIPTS).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports_of(path, tree):
    """Yield the parts of the names of own modules that a module, or a function of it, imports."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path)[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield (*base, alias.name) if exists((*base, alias.name)) else base


def exists(parts):
    """Return whether a module of ``scripts`` has this name."""
    path = SCRIPTS.joinpath(*parts)
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def read(path):
    return ast.parse(path.read_text())


def test_every_package_has_a_place_in_the_order():
    names = {name_of(path)[0] for path in MODULES if name_of(path)}
    assert set(ORDER) == names and len(ORDER) == len(names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SCRIPTS)))
class TestModule:
    def test_imports_no_package_above_its_own(self, path):
        above = {
            imported[0]
            for imported in imports_of(path, read(path))
            if name_of(path) and ORDER.index(imported[0]) > ORDER.index(name_of(path)[0])
        }
        assert above == set()

    def test_imports_own_modules_relatively_and_at_the_top(self, path):
        tree = read(path)
        nested = [
            node
            for scope in ast.walk(tree)
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(scope)
            if isinstance(node, ast.ImportFrom) and node.level
        ]
        absolute = [
            node
            for node in ast.walk(tree)
            if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "scripts" for alias in node.names))
            or (isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] == "scripts")
        ]
        assert nested == [] and absolute == []


def test_no_module_imports_itself_through_others():
    graph = {name_of(path): {target for target in imports_of(path, read(path))} for path in MODULES}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join(".".join(each) for each in [*path, module])
        if module not in done:
            path.append(module)
            for target in sorted(graph.get(module, ())):
                visit(target)
            done.add(path.pop())

    for module in graph:
        visit(module)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_initialize_needs_nothing_of_scripts(path):
    config = json.loads(path.read_text())
    pending, reached = ["initialize"], set()
    while pending:
        name = pending.pop()
        if name in reached or name.partition(ReferenceResolver.sep)[0] not in config:
            continue
        reached.add(name)
        text = json.dumps(ConfigParser(config)[name])
        assert '"scripts.' not in text, name
        pending += ReferenceResolver.match_refs_pattern(text)


def test_paths_that_the_page_names_exist():
    paths = re.findall(r"`((?:scripts|configs|deploy|label|tests|benchmarks|docs)/[\w./-]+)`", PAGE)
    assert len(paths) > 10 and [path for path in paths if not Path(ROOT, path).exists()] == []
