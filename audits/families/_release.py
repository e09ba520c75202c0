"""Which transformers is installed, read without importing it."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version


@lru_cache(maxsize=1)
def release() -> Version:
    """The version of the installed transformers. Raises ``ModuleNotFoundError`` where there is none."""
    try:
        return Version(version("transformers"))
    except PackageNotFoundError as error:
        message = "transformers is not installed in this environment: families are those of an installed transformers"
        raise ModuleNotFoundError(message) from error


def within(specifier: str) -> bool:
    """Whether the installed transformers lies in a version range such as ``>=5.2``. The empty range holds every one."""
    return SpecifierSet(specifier, prereleases=True).contains(release())


def models_folder() -> Path:
    """The folder with one package per family, located without importing transformers."""
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        message = "transformers is not importable in this environment"
        raise ModuleNotFoundError(message)
    return Path(spec.submodule_search_locations[0]) / "models"
