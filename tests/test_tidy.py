"""The house's rules, held by a walk over the source: who may import whom, sizes, docstrings, words."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "dualpath"
FILE_LINES = 450
FUNCTION_LINES = 70

ANY = None
MAY_IMPORT: dict[str, set[str] | None] = {  # folder -> other folders of the package, in the order of dependency
    "core": set(),
    "policy": {"core"},
    "protocol": {"core", "policy"},
    "control": {"core"},
    "store": {"core"},
    "transport": {"core"},
    "node": {"control", "core", "protocol", "store", "transport"},
    "engine": {"control", "core", "policy", "node"},
    "vllm": {"control", "core", "node"},
    "scheduler": {"control", "core", "policy", "protocol"},
    "gateway": {"core", "scheduler"},
    "workload": {"core"},
    "qos": {"core"},
    "sim": {"core", "policy", "protocol", "workload"},
    "doctor": {"core", "store", "transport"},
    "launch": {"core", "engine", "gateway", "node", "scheduler"},
    "bench": ANY,
    "testbed": {"core", "qos"},
    "testing": {"core", "store", "transport", "workload"},
    "cli": ANY,
}
MAIN_MAY_ALSO = {
    "scheduler": {"store"},
    "vllm": {"launch"},
}  # a main.py puts its process together: the index is rebuilt from the store
PURE = {"core", "policy", "protocol"}
IMPURE_MODULES = {
    "asyncio",
    "os",
    "random",
    "secrets",
    "select",
    "socket",
    "subprocess",
    "threading",
    "time",
    "zmq",
}
HEAVY_MODULES = {"torch": {"engine", "vllm"}, "transformers": {"engine", "vllm"}, "vllm": {"vllm"}}
FORBIDDEN_WORDS = [  # spelled in parts, so that this file may be searched too
    "py" + "pi.org",
    "pythonhosted" + ".org",
    "download.py" + "torch.org",
    "TO" + "DO",
    "FIX" + "ME",
    "/work" + "/",
]
SEARCHED = ("src", "tests", "docs", "examples", ".ci")
TEXT_SUFFIXES = {"", ".md", ".py", ".toml", ".lock"}


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def folder_of(path: Path) -> str:
    """The folder below src/dualpath, or "" for the package's own files."""
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else ""


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full, not relative"
            yield node.module or ""
            if node.module == "dualpath":
                yield from (f"dualpath.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> Iterator[str]:
    """Other folders of the package that a file imports from."""
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "dualpath" and len(parts) > 1 and parts[1] in MAY_IMPORT and parts[1] != folder_of(path):
            yield parts[1]


def each(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_folder_has_a_rule() -> None:
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert folders <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", source_files(), ids=each)
def test_folders_import_only_what_they_may(path: Path) -> None:
    allowed = MAY_IMPORT[folder_of(path)] if folder_of(path) else ANY
    if allowed is not ANY:
        extra = MAIN_MAY_ALSO.get(folder_of(path), set()) if path.name == "main.py" else set()
        assert set(own_imports(path)) <= allowed | extra
    assert "testing" not in set(own_imports(path)), "what ships does not import testing/"


@pytest.mark.parametrize("path", source_files(), ids=each)
def test_clocks_sockets_and_torch_stay_where_they_belong(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    if folder_of(path) in PURE:
        assert not roots & (IMPURE_MODULES | set(HEAVY_MODULES))
    for module, folders in HEAVY_MODULES.items():
        assert module not in roots or folder_of(path) in folders


def test_the_gateway_sees_the_scheduler_through_its_client_only() -> None:
    for path in SOURCE.glob("gateway/*.py"):
        allowed = {"dualpath.scheduler.client"}
        if path.name == "main.py":  # composes the process, so it makes the client
            allowed.add("dualpath.scheduler.zmq_client")
        seen = {name for name in imports(path) if name.startswith("dualpath.scheduler")}
        assert seen <= allowed, each(path)


def test_the_simulated_and_the_live_driver_do_not_meet() -> None:
    for path in source_files():
        both = {folder_of(path), *own_imports(path)}
        assert folder_of(path) not in ("sim", "scheduler") or not {"sim", "scheduler"} <= both, each(path)


@pytest.mark.parametrize("path", source_files(), ids=each)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", source_files(), ids=each)
def test_every_module_says_what_it_is(path: Path) -> None:
    if not path.name.startswith("_") or path.name == "__init__.py":
        assert ast.get_docstring(ast.parse(path.read_bytes())), "a module needs a docstring"
    assert path.stem not in ("utils", "util", "helpers", "misc", "common"), "name a module by its noun"


def searched_files() -> Iterator[Path]:
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT_SUFFIXES)
    for folder in SEARCHED:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in TEXT_SUFFIXES and "egg-info" not in str(path):
                yield path


def test_no_forbidden_words() -> None:
    found = [
        f"{each(path)}:{number}: {word}"
        for path in searched_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for word in FORBIDDEN_WORDS
        if word in line
    ]
    assert not found


def test_test_files_have_unique_names() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    assert not list((ROOT / "tests").rglob("__init__.py")), "tests are no package (importmode=importlib)"


def test_the_rules_see_what_they_forbid(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    code = "import os.path\nfrom dualpath import sim\ndef late():\n    from dualpath.store.base import Store\n"
    file.write_text(code)
    assert list(imports(file)) == ["os.path", "dualpath", "dualpath.sim", "dualpath.store.base"]
