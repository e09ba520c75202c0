"""Breaks reference, kernels and laws one small change at a time, and counts how many changes the tests notice.

``python tests/mutation.py COUNT`` tries COUNT changes, as many in each folder, drawn with a fixed seed, and writes
``docs/mutation.md``. It changes files in place, so it runs in a copy of the tree: ``nox -s mutate -- COUNT``.
"""

# mypy: disable-error-code="import-untyped"
# cosmic-ray ships no types.

from __future__ import annotations

import ast
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

SEED = 20_261
SLOWEST, SLACK = 4.0, 60.0
"""A mutant may take so many times as long as the unbroken code, and never less than so many seconds."""
PYTEST = (sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header")
PAGE = Path("docs/mutation.md")


FOLDERS = ("reference", "kernels", "audits/laws")
"""What is mutated: the Python files of these folders."""
TESTS: Mapping[str, tuple[str, ...]] = {
    "reference/rope_frequencies.py": ("tests/test_reference_frequencies.py",),
    "reference/vision_rope.py": ("tests/test_reference_vision_rope.py",),
    "reference/mrope.py": ("tests/test_reference_mrope*.py",),
    "reference/mrope_families.py": ("tests/test_reference_mrope*.py",),
    "reference/mrope_*.py": ("tests/test_reference_*position*.py",),
    "reference/loss_normaliser.py": ("tests/test_reference_loss_normaliser.py",),
    "reference/loss_total.py": ("tests/test_reference_loss_total.py",),
    "reference/packed_*.py": ("tests/test_reference_packed_*.py",),
    "reference/label_*.py": ("tests/test_reference_label_*.py",),
    "reference/*.py": (
        "tests/test_reference_masked_*.py", "tests/test_reference_linear_*.py", "tests/test_reference_loss_*.py",
    ),
    "kernels/mrope*.py": ("tests/test_kernel_mrope*.py",),
    "kernels/masked_regression*.py": ("tests/test_kernel_masked_regression*.py",),
    "kernels/linear_*.py": ("tests/test_kernel_linear_cross_entropy*.py",),
    "kernels/*.py": ("tests/test_kernel_masked_cross_entropy*.py",),
    "audits/laws/*.py": ("tests/test_limits.py", "tests/test_laws_shared.py", "tests/test_faults.py"),
}  # fmt: skip
"""The tests that are to notice, by the file that is changed: the first pattern that fits counts."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change: the ``occurrence``-th place in a file where an operator fits."""

    path: Path
    line: int
    operator: str
    occurrence: int

    def code(self, original: str) -> str | None:
        """The changed file; None when the change cannot be made."""
        changed: str | None = mutate_code(original, get_operator(self.operator)(), self.occurrence)
        return changed


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of one mutant: ``killed``, ``survived`` or ``timeout``, with the changed line before and after."""

    mutant: Mutant
    outcome: str
    before: str
    after: str


def mutants(folder: str) -> list[Mutant]:
    """Every change of every file of a folder, in a fixed order."""
    return [mutant for path in sorted(Path(folder).glob("*.py")) for mutant in _of_file(path)]


def _of_file(path: Path) -> Iterator[Mutant]:
    tree = get_ast_from_path(path)
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments():
            continue
        places = [start for node in ast_nodes(tree) for start, _ in kind().mutation_positions(node)]
        for occurrence, (line, _) in enumerate(places):
            yield Mutant(path=path, line=line, operator=name, occurrence=occurrence)


def chosen(folder: str, count: int) -> list[Mutant]:
    """A fixed sample of the changes that alter what runs."""
    drawn: list[Mutant] = []
    everything = mutants(folder)
    random.Random(SEED).shuffle(everything)
    for mutant in everything:
        if len(drawn) == count:
            break
        if _alters(mutant, mutant.path.read_text(encoding="utf-8")):
            drawn.append(mutant)
    return drawn


def _alters(mutant: Mutant, original: str) -> bool:
    """Whether a change is one of code that runs: one in an annotation alone is not, nor one that does not parse."""
    changed = mutant.code(original)
    if changed is None:
        return False
    try:
        return _code(changed) != _code(original)
    except SyntaxError:
        return False


def _code(text: str) -> str:
    """A module without its annotations."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


@contextmanager
def applied(mutant: Mutant) -> Iterator[tuple[str, str]]:
    """The changed file in place of the original, which comes back whatever happens. Gives the line before and after."""
    original = mutant.path.read_text(encoding="utf-8")
    changed = mutant.code(original)
    assert changed is not None
    try:
        mutant.path.write_text(changed, encoding="utf-8")
        yield _changed_line(original, changed)
    finally:
        mutant.path.write_text(original, encoding="utf-8")


def _changed_line(original: str, changed: str) -> tuple[str, str]:
    pairs = zip(original.splitlines(), changed.splitlines(), strict=False)
    before, after = next(((a, b) for a, b in pairs if a != b), ("", ""))
    return before.strip(), after.strip()


def tests(path: Path) -> tuple[str, ...]:
    """The test files that are to notice a change of a file."""
    globs = next(globs for pattern, globs in TESTS.items() if path.match(pattern))
    return tuple(sorted(str(found) for glob in globs for found in Path().glob(glob)))


def run(files: Sequence[str], seconds: float | None) -> int | None:
    """pytest's exit status on these files; None when it was stopped at the limit."""
    source = os.pathsep.join(filter(None, (str(Path("src").resolve()), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [*PYTEST, *files], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@cache
def limit(files: tuple[str, ...]) -> float:
    """Seconds that these tests may take. SystemExit when they fail without any change: nothing could be concluded."""
    start = time.monotonic()
    if status := run(files, None):
        sys.exit(f"{', '.join(files)}: the unbroken tests end with status {status}; there is no score")
    return max(SLACK, SLOWEST * (time.monotonic() - start))


def attempt(mutant: Mutant) -> Trial:
    """Try one mutant."""
    files = tests(mutant.path)
    seconds = limit(files)
    with applied(mutant) as (before, after):
        status = run(files, seconds)
    outcome = "timeout" if status is None else "killed" if status else "survived"
    print(f"{outcome:8} {mutant.path}:{mutant.line} {mutant.operator}", flush=True)
    return Trial(mutant=mutant, outcome=outcome, before=before, after=after)


def page(trials: Mapping[str, Sequence[Trial]]) -> str:
    """The result as Markdown."""
    everything = [trial for room in trials.values() for trial in room]
    noticed = sum(trial.outcome != "survived" for trial in everything)
    lines = [
        "# Mutation score",
        "",
        f"Made by `nox -s mutate -- {len(everything)}`: that many small changes, drawn with a fixed seed, as many in",
        "each folder; each alone, then the tests of that file. A change that the tests notice is killed; one that",
        "makes them run past their limit is noticed too. Changes of annotations are not counted.",
        "",
        f"**{noticed} of {len(everything)} noticed.**" + _caution(len(everything)),
        "",
        "| folder | changes | killed | timeout | survived |",
        "|---|--:|--:|--:|--:|",
        *(_row(name, found) for name, found in trials.items()),
        "",
        "## Survivors",
        "",
        *([_survivor(trial) for trial in everything if trial.outcome == "survived"] or ["None."]),
    ]
    return "\n".join(lines) + "\n"


def _caution(count: int) -> str:
    return " So few say little: they show that the machinery works." if count < 100 else ""


def _row(name: str, found: Sequence[Trial]) -> str:
    counts = [sum(trial.outcome == outcome for trial in found) for outcome in ("killed", "timeout", "survived")]
    return "| " + " | ".join(map(str, (name, len(found), *counts))) + " |"


def _survivor(trial: Trial) -> str:
    where = f"`{trial.mutant.path}:{trial.mutant.line}` {trial.mutant.operator.rpartition('/')[2]}"
    return f"* {where}: `{trial.before}` became `{trial.after or '(nothing)'}`"


def main(arguments: Sequence[str]) -> None:
    """Try as many mutants as the first argument says, and write the page."""
    if Path(".git").exists():
        sys.exit("this is a checkout, and files are changed in place: run `nox -s mutate`, which works on a copy")
    count = int(arguments[0]) if arguments else 40
    shares = [count // len(FOLDERS) + (place < count % len(FOLDERS)) for place in range(len(FOLDERS))]
    pairs = zip(FOLDERS, shares, strict=True)
    trials = {folder: [attempt(mutant) for mutant in chosen(folder, share)] for folder, share in pairs}
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(trials), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
