"""The shape of the project: what is importable, what is shipped, and what the sources may not do."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import tokenizers

import cm3kit
from cm3kit_tokenizers.errors import ERROR_CODES

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "cm3kit": ROOT / "cm3kit",
    "cm3kit_cli": ROOT / "cli/cm3kit_cli",
    "cm3kit_tokenizers": ROOT / "tokenizers/cm3kit_tokenizers",
}
SOURCES = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(str(p.parent) for p in PACKAGES.values())}
FORBIDDEN_CALLS = {
    "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "eval", "exec", "os.system",
    "torch.manual_seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.random.manual_seed",
    "random.seed", "np.random.seed", "numpy.random.seed", "set_seed",
    "transformers.set_seed", "accelerate.utils.set_seed",
}  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def place(path: Path, node: ast.expr | ast.stmt | ast.keyword) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def run_python(source: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", source]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def test_top_level_folders_are_not_packages() -> None:
    assert not [name for name in ("cli", "tokenizers", "tests") if (ROOT / name / "__init__.py").exists()]
    assert not [path for name in ("cli", "tokenizers") for path in (ROOT / name).glob("*.py")]
    assert not (ROOT / "tests/tokenizers").exists() and not (ROOT / "conftest.py").exists()


def test_tokenizers_is_still_hugging_faces() -> None:
    # A venv may lie inside the checkout, so what counts is the folder that holds the package.
    assert Path(str(tokenizers.__file__)).parents[1] not in (ROOT, ROOT / "tokenizers", ROOT / "cli")
    assert tokenizers.Tokenizer.__module__ == "tokenizers"


def test_the_wheel_holds_three_packages_whole(tmp_path: Path) -> None:
    if not (ROOT / "checkpoints/pictures").is_dir():
        pytest.skip("checkpoints/pictures, which the wheel includes, is absent")
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    built = run_python(f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))")
    assert built.returncode == 0, built.stderr[-2000:]
    with zipfile.ZipFile(tmp_path / built.stdout.split()[-1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == set(PACKAGES)
    for name, folder in PACKAGES.items():
        expected = {f"{name}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}
        assert expected and expected <= names, f"missing from the wheel: {sorted(expected - names)}"
        assert f"{name}/py.typed" in names
    assert "cm3kit/checkpoints/pictures/model_index.json" in names


def test_help_does_not_import_torch() -> None:
    heavy = "{'torch', 'transformers', 'diffusers', 'accelerate', 'numpy', 'PIL'}"
    child = run_python(
        "import sys; sys.argv = ['cm3kit', '--help']\n"
        "from cm3kit_cli.main import run\n"
        "try: run()\nexcept SystemExit as stop: assert not stop.code, stop.code\n"
        f"print('loaded:', sorted({heavy} & set(sys.modules)))"
    )
    assert child.returncode == 0, child.stderr
    assert "Usage" in child.stdout and child.stdout.splitlines()[-1] == "loaded: []"


def test_all_is_the_public_names() -> None:
    public = {
        name
        for name, value in vars(cm3kit).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }
    assert len(set(cm3kit.__all__)) == len(cm3kit.__all__)
    assert public <= set(cm3kit.__all__) | {"TYPE_CHECKING"}
    assert all(hasattr(cm3kit, name) for name in cm3kit.__all__)


def test_imports_go_one_way() -> None:
    pytest.importorskip("importlinter")
    child = run_python(
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    )
    assert child.returncode == 0, child.stdout + child.stderr


def imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """Modules of the project that a file imports, in functions and for type checkers too."""
    found = set()
    for node in ast.walk(TREES[path]):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = {f"{node.module}.{each.name}" for each in node.names}
            names = [*(inner & modules.keys()), *([] if inner <= modules.keys() else [node.module])]
        found |= {name for name in names if name in modules and modules[name] != path}
    return found


def test_no_modules_import_each_other() -> None:
    modules = {}
    for name, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = [name, *path.relative_to(folder).with_suffix("").parts]
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {name: imports(path, modules) for name, path in modules.items()}
    assert sum(map(len, graph.values())) > 1000
    TopologicalSorter(graph).prepare()  # CycleError names the modules


def test_console_scripts_exist() -> None:
    scripts = re.findall(r'^\w+ = "(cm3kit_cli[\w.]*):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert scripts == [("cm3kit_cli.start", "run")]
    for module, name in scripts:
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("name", PACKAGES)
def test_packages_are_typed_and_importable(name: str) -> None:
    assert (PACKAGES[name] / "py.typed").is_file()
    folders = {path.parent for path in PACKAGES[name].rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_files_and_functions_stay_small() -> None:
    long_files = [p for p in SOURCES if len(p.read_text(encoding="utf-8").splitlines()) > 350]
    long_functions = [
        f"{place(path, node)} {node.name}"
        for path, tree in TREES.items()
        for node in functions(tree)
        if (node.end_lineno or node.lineno) - node.lineno + 1 > 60
    ]
    assert not long_files and not long_functions


def test_every_module_has_a_docstring_and_postponed_annotations() -> None:
    assert not [path for path, tree in TREES.items() if not ast.get_docstring(tree)]
    with_code = [path for path, tree in TREES.items() if any(functions(tree))]
    assert not [p for p in with_code if "from __future__ import annotations" not in p.read_text()]


def is_the_safe_load(path: Path, call: ast.Call) -> bool:
    """The one place that opens foreign pickles, with torch's restricted unpickler."""
    restricted = any(key.arg == "weights_only" and ast.unparse(key.value) == "True" for key in call.keywords)
    return path.name == "pickles.py" and ast.unparse(call.func) == "torch.load" and restricted


def test_nothing_forbidden_is_called() -> None:
    found = [
        f"{place(path, call)} {ast.unparse(call.func)}"
        for path, tree in TREES.items()
        for call in calls(tree)
        if (ast.unparse(call.func) in FORBIDDEN_CALLS and not is_the_safe_load(path, call))
        or any(key.arg == "trust_remote_code" and ast.unparse(key.value) != "False" for key in call.keywords)
    ]
    assert not found


def test_no_module_that_unpickles_is_imported() -> None:
    imported = {
        (path, name.split(".")[0])
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not [(path, name) for path, name in imported if name in FORBIDDEN_MODULES]
    assert any(name == "torch" for _, name in imported), "the scan sees imports at all"


def test_every_error_code_in_the_sources_is_registered() -> None:
    used = {
        (key.value.value, place(path, key))
        for path, tree in TREES.items()
        for call in calls(tree)
        for key in call.keywords
        if key.arg == "code" and isinstance(key.value, ast.Constant) and isinstance(key.value.value, str)
    }
    assert not [where for code, where in sorted(used) if code not in ERROR_CODES]


def test_error_codes_are_documented() -> None:
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", text, re.M)
    assert dict(rows) == ERROR_CODES and len(rows) == len(ERROR_CODES)


def asserting(trees: Sequence[ast.Module]) -> set[str]:
    """Names of the functions that assert: by themselves, by `raises` or `warns`, or by a function that does."""
    bodies = {node.name: node for tree in trees for node in functions(tree)}
    called = {
        name: {ast.unparse(call.func).split(".")[-1] for call in calls(node)} for name, node in bodies.items()
    }
    found = {
        name
        for name, node in bodies.items()
        if any(isinstance(each, ast.Assert) for each in ast.walk(node))
        or called[name] & {"raises", "warns", "fail"}
    }
    while more := {name for name in bodies if name not in found and called[name] & found}:
        found |= more
    return found


def test_every_test_asserts_something() -> None:
    tools = [
        ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "tests/tools").glob("*.py"))
    ]
    silent = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        sound = asserting([*tools, tree])
        tests = [node for node in functions(tree) if node.name.startswith("test_")]
        silent += [f"{place(path, node)} {node.name}" for node in tests if node.name not in sound]
    assert not silent


def test_a_test_that_asserts_nothing_is_found() -> None:
    tree = ast.parse(
        "def test_a():\n    text = 'assert'  # assert\n"
        "def test_b():\n    holds(1)\ndef holds(x):\n    assert x\n"
        "def test_c():\n    with pytest.raises(ValueError):\n        int('x')\n"
    )
    assert asserting([tree]) == {"holds", "test_b", "test_c"}


def test_light_tokenizer_modules_do_not_import_torch() -> None:
    names = ("errors", "vocab", "document", "html")
    imports = "; ".join(f"import cm3kit_tokenizers.{name}" for name in names)
    child = run_python(f"{imports}; import sys; print('torch' in sys.modules)")
    assert child.stdout.strip() == "False", child.stderr
