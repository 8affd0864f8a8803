"""One import package over four folders: disk, declaration and wheel agree, and imports run one way."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {
    "arr_coc": 0,
    "adapters": 1,
    "training": 2,
    "eval": 3,
}  # a folder imports from itself and from below


def on_disk() -> set[str]:
    """Every folder of the four that holds Python files or is declared for its data."""
    found = set()
    for folder in FOLDERS:
        for path in [ROOT / folder, *(ROOT / folder).rglob("*")]:
            if path.is_dir() and path.name != "__pycache__" and any(path.glob("*.py")):
                inner = path.relative_to(ROOT).as_posix().replace("/", ".")
                found.add(inner if folder == "arr_coc" else f"arr_coc.{inner}")
    return found


def test_declared_packages_are_those_on_disk() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk()


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_all_data(tmp_path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in n}
    expected = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                inner = path.relative_to(ROOT).as_posix()
                expected.add(inner if folder == "arr_coc" else f"arr_coc/{inner}")
    assert inside == expected
    assert {n.split("/")[0] for n in inside} == {"arr_coc"}


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_run_one_way(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != "arr_coc":
                assert folder != "arr_coc" or parts[0] not in ("transformers", "timm", "datasets"), (
                    path,
                    name,
                )
                continue
            target = parts[1] if len(parts) > 1 and parts[1] in FOLDERS else "arr_coc"
            assert FOLDERS[target] <= FOLDERS[folder], f"{path.name} imports {name}"


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, arr_coc; heavy = {'transformers', 'timm', 'datasets'} & set(sys.modules); "
        "assert not heavy, heavy; assert arr_coc.attach; print(arr_coc.__version__)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_an_unknown_name_says_what_there_is() -> None:
    import arr_coc

    with pytest.raises(AttributeError, match="ArrCocConfig"):
        _ = arr_coc.atach


def test_nothing_unasked_for_stands_at_the_top() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    known = {*FOLDERS, "tests", "pyproject.toml", "README.md", "LICENSE"}
    assert {t for t in top if not t.startswith(".")} <= known
