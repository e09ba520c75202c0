"""The layout that keeps ``kernels`` from shadowing Hugging Face's package, and the rooms apart."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import assay

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "assay"
ROOMS = ("audits", "benchmarks", "kernels", "reference")
ALLOWED = {"reference": {"torch"}, "kernels": {"torch", "triton"}}
"""What a room may import besides the standard library and itself."""


def _run(code: str, *, path: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that sees the given folder first."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_the_bare_name_is_not_ours() -> None:
    """transformers asks for hub kernels by ``find_spec``; ours are found by their full name only."""
    code = "import importlib.util; print(vars(importlib.util.find_spec('kernels') or object))"
    found = _run(code, path=ROOT / "src", cwd=ROOT / "docs")
    assert str(ROOT) not in found.stdout, found.stdout + found.stderr
    assert importlib.util.find_spec("assay.kernels") is not None


def test_a_regular_package_beats_our_folder(tmp_path: Path) -> None:
    """Also where the repository itself is the current folder, ahead of everything."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("whose = 'theirs'")
    found = _run("import kernels; print(kernels.whose)", path=tmp_path, cwd=ROOT)
    assert found.stdout == "theirs\n", found.stderr


@pytest.mark.parametrize("room", [*ROOMS, "tests"])
def test_rooms_are_no_packages_at_the_top(room: str) -> None:
    """An ``__init__.py`` there would make them importable by their bare names."""
    assert not (ROOT / room / "__init__.py").exists()


@pytest.mark.parametrize("room", ROOMS)
def test_the_package_links_to_the_rooms(room: str) -> None:
    """By relative links, which git keeps."""
    link = PACKAGE / room
    assert link.is_symlink()
    assert str(link.readlink()) == f"../../{room}"
    assert link.resolve() == ROOT / room


def _imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_they_may(room: str) -> None:
    """The specification and the kernels stand on their own: neither knows the other, nor the judge."""
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        foreign = {
            name for name in _imports(path)
            if name.partition(".")[0] not in sys.stdlib_module_names | ALLOWED[room]
            and not f"{name}.".startswith(f"assay.{room}.")
        }  # fmt: skip
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_importing_assay_imports_nothing_heavy() -> None:
    """Not torch, nor anything of ours: its names come when they are used."""
    found = _run("import sys, assay; print(*sys.modules)", path=ROOT / "src", cwd=ROOT / "docs")
    loaded = set(found.stdout.split())
    assert "assay" in loaded, found.stderr
    assert not loaded & {"torch", "numpy", "transformers", "triton", "typer", "hypothesis", "pydantic"}
    assert not {name for name in loaded if name.startswith("assay.")}


@pytest.mark.parametrize("how", ["text", "nothing"])
def test_links_that_are_none_are_told(tmp_path: Path, how: str) -> None:
    """A checkout without links (Windows, some archives) says so, instead of lacking a module."""
    broken = tmp_path / "assay"
    broken.mkdir()
    shutil.copy(PACKAGE / "__init__.py", broken)
    shutil.copytree(ROOT / "reference", broken / "reference")
    for room in ("audits", "kernels"):
        if how == "text":
            (broken / room).write_text(f"../../{room}")
    # The editable install finds assay by a hook of its own: without site there is none.
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import assay"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert all(word in last for word in ("audits", "kernels", "symbolic link", "core.symlinks"))
    assert "reference" not in last


def test_the_version_is_that_of_the_distribution() -> None:
    """Said in one place each, alike."""
    assert f'version = "{assay.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
