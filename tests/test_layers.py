"""The house: imports go one way, the maths imports torch only, what starts often starts fast, and
the map in `plugins/__init__.py` shows the rooms that are there.

A room is a file or folder of `plugins/`. Which room lies on which level follows from the tree; no
table says so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from conftest import ROOT

import plugins

PLUGINS = ROOT / "plugins"
# What takes seconds to import, or half of one.
HEAVY = {"torch", "torchaudio", "swift", "transformers", "datasets", "numpy"}
HEAVY_FOR_COMMANDS = HEAVY - {"numpy"}  # what reads audio needs it at once
COMMANDS = (
    "sft",
    "rlhf",
    "speak",
    "convert",
    "doctor",
    "export",
    "app",
    "serve",
    "inspect",
    "evaluate",
    "new-voice",
    "preferences",
)
Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    paths = {}
    for path in sorted(PLUGINS.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        paths[".".join(parts).removesuffix(".__init__")] = path
    return paths


MODULES = modules()
FOLDERS = sorted(path.parent for path in PLUGINS.rglob("__init__.py") if path.parent != PLUGINS)


def imports(path: Path, *, at_start: bool = False) -> set[str]:
    """Names of modules: of ours in full, of others the package. at_start: only those that are
    imported with the file."""
    names: set[str] = set()
    for statement in statements(ast.parse(path.read_text(encoding="utf-8")), at_start=at_start):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, f"{path}: relative imports fail under --external_plugins"
            # What is taken may be a module as well: `from plugins.audio import waveforms`.
            names |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return set(map(imported_module, names))


def statements(node: ast.AST, *, at_start: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if not (at_start and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from statements(child, at_start=at_start)


def imported_module(name: str) -> str:
    """The name ends in what is taken from the module, or in nothing of it."""
    if name.split(".")[0] != "plugins":
        return name.split(".")[0]
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def room_of(module: str) -> str:
    return module.split(".")[1]


def rooms() -> Graph:
    """The map, `plugins/__init__.py`, exports from everywhere when it is asked, and is no room."""
    graph: Graph = {}
    for module, path in MODULES.items():
        if module == "plugins":
            continue
        graph.setdefault(room_of(module), set())
        for other in imports(path):
            # Also what is imported late: a circle that is hidden in a function is one.
            if other.startswith("plugins.") and room_of(other) != room_of(module):
                graph[room_of(module)].add(room_of(other))
    return graph


def files_of(folder: Path) -> Graph:
    """What the files of a folder import of each other as they start."""
    inside = {module for module, path in MODULES.items() if path.parent == folder}
    graph: Graph = {}
    for module in inside:
        # A late import between two files of one room is allowed: it is one subject.
        graph[module] = (imports(MODULES[module], at_start=True) & inside) - {module}
    return graph


def circle(graph: Graph) -> str | None:
    """The circle in a graph, below the levels that do not hang on it; None if there is none."""
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        text = f"circle: {' <- '.join(error.args[1])}"
    else:
        return None
    # What does not hang on the circle has its level all the same.
    while ready := sorter.get_ready():
        text = f"{', '.join(sorted(ready))}\n{text}"
        sorter.done(*ready)
    return f"from the highest level to the lowest, and what has none:\n{text}"


def test_rooms_import_in_no_circle() -> None:
    complaint = circle(rooms())
    assert complaint is None, complaint


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_files_of_a_room_import_in_no_circle(folder: Path) -> None:
    complaint = circle(files_of(folder))
    assert complaint is None, complaint


def test_a_circle_is_told_with_the_levels_around_it() -> None:
    graph: Graph = {"ground": set(), "a": {"ground", "b"}, "b": {"a"}}
    assert str(circle(graph)).splitlines()[1:] in (
        ["ground", "circle: a <- b <- a"],
        ["ground", "circle: b <- a <- b"],
    )


@pytest.mark.parametrize(
    ("file", "ours"),
    [
        ("delay_pattern.py", set()),
        ("model/rows.py", set()),
        (
            "model/loss.py",
            {"plugins.delay_pattern", "plugins.errors", "plugins.model.rows", "plugins.settings"},
        ),
    ],
)
def test_the_maths_imports_torch_only(file: str, ours: set[str]) -> None:
    assert imports(PLUGINS / file) - set(sys.stdlib_module_names) <= {"torch", *ours}


def test_no_room_is_named_like_another_package() -> None:
    """MS-SWIFT puts the folder of an external plugin first on sys.path: `plugins/datasets.py` would
    shadow datasets."""
    names = {path.stem for path in PLUGINS.iterdir()}
    assert not names & sys.stdlib_module_names
    assert not names & packages_distributions().keys()


def test_the_map_has_a_line_for_each_room() -> None:
    lines = re.findall(r"^([\w/]+/|\w+\.py) {2,}", plugins.__doc__ or "", re.MULTILINE)
    rooms = {path.name for path in PLUGINS.glob("[!_]*.py")}
    for path in PLUGINS.glob("*/__init__.py"):
        rooms.add(f"{path.parent.name}/")
    assert len(rooms) <= 24, "the house is seen at a glance"
    assert len(lines) == len(set(lines))
    assert rooms <= set(lines)
    # Also of rooms in rooms: "training/preflight/".
    for line in lines:
        assert (PLUGINS / line).exists(), line


def run_anew(code: str) -> None:
    """`code` in a fresh process, in which `assert_light()` refuses what takes long to import."""
    lines = f"""
import sys
def assert_light(heavy={HEAVY}):
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
{code}"""
    process = subprocess.run(
        [sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr[-3000:]


def test_importing_the_package_is_free() -> None:
    run_anew("import plugins; assert_light()")


def test_preparing_needs_no_torch() -> None:
    run_anew(f"import plugins.settings, plugins.prepare.cli; assert_light({HEAVY_FOR_COMMANDS})")


def test_hearing_needs_no_torch() -> None:
    """Hours of recordings are cut and written down in less memory than torch takes."""
    run_anew("""
from pathlib import Path
from types import SimpleNamespace
sys.modules["faster_whisper"] = SimpleNamespace(WhisperModel=lambda *model, **options: None)
from plugins.hearing.recogniser import Recogniser
Recogniser(Path("/"))
assert_light({"torch"})
""")


def test_help_starts_fast() -> None:
    words = [["--help"], ["--version"], ["preferences", "--help"]]
    words += [[command, "--help"] for command in COMMANDS]
    run_anew(f"""
from plugins.cli import main
for words in {words}:
    try:
        main(words)
    except SystemExit as end:
        assert not end.code, words
    assert_light({HEAVY_FOR_COMMANDS})
""")
