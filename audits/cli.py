"""The ``assay`` command. Nothing heavy is imported before a command needs it, so that ``--help`` is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from assay.audits.terms import Verdict
from assay.audits.usage import BadUsage

if TYPE_CHECKING:
    from assay.audits.choose import Request
    from assay.audits.options import Options
    from assay.audits.session import Progress
    from assay.audits.terms import Report, Waiver

EXIT = {Verdict.PASS: 0, Verdict.WAIVED: 0, Verdict.FAIL: 1, Verdict.UNKNOWN: 3}
"""Exit status by verdict. 2 is bad usage or configuration; the command's own crash is 3."""
USAGE, CRASH = 2, 3
OUTPUTS = ("json", "junit", "sarif", "markdown", "html")
_TYPER_ERROR: Any = typer.BadParameter.__mro__[2]
"""typer's ``ClickException``, wherever this version of typer keeps it."""

app = typer.Typer(
    help="Find out what a training component is really made of.",
    epilog="Exit status: 0 pass or waived, 1 fail, 2 bad usage or configuration, 3 unknown.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)

Targets = Annotated[
    list[str] | None,
    typer.Argument(metavar="COMPONENT|OPERATION", help="What to audit; everything if nothing is named."),
]
Family = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A model family of transformers; with --candidate, the one whose rule judges the function; repeatable.",
    ),
]
LawName = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this law; repeatable.")]
CaseName = Annotated[
    list[str] | None, typer.Option(metavar="NAME|JSON", help="Only this case, by name or as JSON; repeatable.")
]
Dtype = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this dtype; repeatable.")]
Target = Annotated[str | None, typer.Option(metavar="PKG.MOD:FN", help="The implementation to audit.")]
Patch = Annotated[str | None, typer.Option(metavar="PKG.MOD:APPLY", help="The patch of a model to audit.")]
PipelineRef = Annotated[
    str | None,
    typer.Option("--pipeline", metavar="PKG.MOD:MAKE", help="The function that makes the training pipeline to audit."),
]
PeerName = Annotated[
    str | None,
    typer.Option("--peer", metavar="NAME", help="The released package whose callables to audit; --python says where."),
]
Python = Annotated[
    str, typer.Option(metavar="FILE", help="The Python of another environment, in which candidates are imported.")
]
Against = Annotated[
    Path | None,
    typer.Option(metavar="PYTHON|FILE", help="Compare with the same audit in another environment, or with a report."),
]
FormName = Annotated[
    str | None, typer.Option(metavar="NAME", help="How the candidate is called, where its signature leaves a doubt.")
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the searched cases.")]
Examples = Annotated[int, typer.Option(min=0, metavar="N", help="How many cases to search for each dtype.")]
Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the candidate runs.")]
Limit = Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="Time limit of one call.")]
Waivers = Annotated[Path | None, typer.Option(metavar="FILE", help="Waivers; ./waivers.toml if there is one.")]
Output = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report in this format.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print the last line only.")]
ReportFile = Annotated[Path, typer.Option("--report", metavar="F", help="The JSON report that has the finding.")]
Annotate = Annotated[
    bool, typer.Option("--annotations/--no-annotations", help="In GitHub Actions: annotations and the step summary.")
]
Kind = Literal["components", "operations", "laws", "faults", "families"]


@app.command()
def audit(  # noqa: PLR0913, PLR0917 - one parameter for each option
    ctx: typer.Context,
    targets: Targets = None,
    candidate: Target = None,
    form: FormName = None,
    family: Family = None,
    patch: Patch = None,
    pipeline: PipelineRef = None,
    peer: PeerName = None,
    law: LawName = None,
    case: CaseName = None,
    seed: Seed = 0,
    examples: Examples = 20,
    device: Device = "cpu",
    dtype: Dtype = None,
    time_limit: Limit = 20.0,
    python: Python = "",
    against: Against = None,
    waivers: Waivers = None,
    json: Output = None,  # noqa: ARG001 - read by name below
    junit: Output = None,  # noqa: ARG001 - read by name below
    sarif: Output = None,  # noqa: ARG001 - read by name below
    markdown: Output = None,  # noqa: ARG001 - read by name below
    html: Output = None,  # noqa: ARG001 - read by name below
    *,
    quiet: Quiet = False,
    annotations: Annotate = True,
) -> None:
    """Judge implementations by the laws of their operations."""
    from assay.audits.server import Server

    named = bool(pipeline) or ":" in (candidate or "").removeprefix("fault:")
    here = named and not python and not peer
    server = Server() if here else None  # it comes up while this process imports torch: somebody waits for a verdict

    from assay.audits import session
    from assay.audits.choose import Request
    from assay.audits.run import Options

    paths = {name: path for name in OUTPUTS if (path := ctx.params[name]) is not None}
    session.check_outputs(paths)
    excuses = session.excuses(waivers)
    session.check_python(python, "--python")
    session.check_python(against, "--against")
    base = _load(against) if against is not None and against.suffix == ".json" else None
    if candidate or patch or pipeline:
        _import_from_here()
    request = Request(
        targets=tuple(targets or ()), candidate=candidate, form=form, families=tuple(family or ()), patch=patch,
        pipeline=pipeline, peer=peer,
    )  # fmt: skip
    options = Options(
        laws=tuple(law or ()), cases=tuple(case or ()), seed=seed, examples=examples,
        device=device, dtypes=tuple(dtype or ()), time_limit=time_limit,
        python=python,
    )  # fmt: skip
    with _progress(quiet=quiet) as progress:
        found = session.conduct(request, options, progress, server)
    report = session.excused(found, excuses)
    session.write(report, paths)
    _tell(report, quiet=quiet, annotations=annotations)
    if against is not None:
        _compare(report, base or str(against), request, options, excuses)
    raise typer.Exit(EXIT[report.verdict])


@app.command()
def show(
    pipeline: Annotated[
        str | None, typer.Option(metavar="PKG.MOD:MAKE", help="The function that makes the pipeline, as for audit.")
    ] = None,
    batch: Annotated[Path | None, typer.Option(metavar="FILE", help="Or a batch that a guard wrote.")] = None,
    samples: Annotated[
        str, typer.Option(metavar="0,1,2", help="The samples of the batch by their indices; the first four.")
    ] = "",
    html: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("batch.html"),
    time_limit: Limit = 60.0,
) -> None:
    """Draw one batch as a page: every token, what is trained on, and the positions."""
    from assay.audits import pipeline_show, session

    if (pipeline is None) == (batch is None) or (batch is not None and samples):
        raise BadUsage("expected --pipeline, with --samples if you like, or --batch")
    session.check_outputs({"html": html})
    if batch is not None:
        from assay.audits import guard_show

        shown = guard_show.page(batch)
    else:
        _import_from_here()
        shown = pipeline_show.page(str(pipeline), pipeline_show.indices(samples), time_limit)
    session.written(html, shown.html)
    for line in (*shown.lines, f"{html} written"):
        typer.echo(line)


@app.command("list")
def list_(kind: Annotated[Kind, typer.Argument(help="What to list.")] = "components") -> None:
    """List what there is, and what each is."""
    from assay.audits import manual

    rows = manual.catalogue(kind)
    width = max((len(name) for name, _ in rows), default=0)
    for name, summary in rows:
        typer.echo(f"{name:{width}}  {summary}".rstrip())


@app.command()
def explain(rule: Annotated[str, typer.Argument(help="A rule, law, fault, operation or component.")]) -> None:
    """Print the manual page of a rule or a name."""
    from assay.audits import manual

    typer.echo(manual.page(rule))


@app.command()
def repro(
    finding: Annotated[
        str, typer.Argument(help="Its fingerprint, the start of it, or its rule; or a batch that a guard wrote.")
    ],
    report: ReportFile = Path("report.json"),
) -> None:
    """Run one finding of a report again, or judge a guard's batch again."""
    import tempfile

    if Path(finding).suffix in {".json", ".safetensors"}:
        _judge(Path(finding))

    from assay.audits import repro as again

    wanted = again.chosen(_load(report), finding)
    typer.echo(f"$ {wanted.repro}")
    with tempfile.TemporaryDirectory(prefix="assay-") as folder:
        written = Path(folder) / "report.json"
        narrowed = [*again.arguments(wanted), "--json", str(written), "--quiet", "--no-annotations"]
        status = app(["audit", *narrowed], standalone_mode=False)
        if not written.is_file():
            raise typer.Exit(int(status))
        said, verdict = again.outcome(wanted, _load(written))
    typer.echo(f"{wanted.fingerprint} {said}")
    raise typer.Exit(EXIT[verdict])


def _judge(batch: Path) -> None:
    """What a guard wrote, put to its laws again."""
    from assay.audits import guard_show

    result = guard_show.again(batch)
    for line in result.lines:
        typer.echo(line)
    raise typer.Exit(EXIT[result.verdict])


@app.command()
def gate(
    base: Annotated[Path, typer.Argument(metavar="BASE.json")],
    head: Annotated[Path, typer.Argument(metavar="HEAD.json")],
) -> None:
    """Fail for what is new or worse than before."""
    from assay.audits import gate as regression
    from assay.audits.render import comparison, github

    result = regression.gate(_load(base), _load(head))
    text = comparison.render(result)
    typer.echo(text, nl=False)
    if github.active(os.environ):
        github.append(text, os.environ)
    raise typer.Exit(EXIT[result.verdict])


@app.command()
def version() -> None:
    """Print the version."""
    import assay

    typer.echo(f"assay {assay.__version__}")


def _load(path: Path) -> Report:
    from assay.audits.render import schema

    try:
        return schema.load(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path}: cannot be read: {error}"
        raise BadUsage(message) from error


def _compare(
    report: Report, other: Report | str, request: Request, options: Options, excuses: tuple[Waiver, ...]
) -> None:
    """Say what is otherwise here than there: in the environment of a Python, or in a report."""
    from assay.audits import against, session
    from assay.audits.render import against as render

    if not isinstance(other, str):
        typer.echo(render.render(against.compare(other, report)), nl=False)
        return
    there = replace(options, python=other)
    base = session.excused(session.conduct(request, there), excuses)
    values = against.observed(request, there), against.observed(request, options)
    typer.echo(render.render(against.compare(base, report, *values)), nl=False)


def _import_from_here() -> None:
    """Make the current directory importable. Last, so that a folder in it does not shadow an installed package."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)


def _progress(*, quiet: bool) -> AbstractContextManager[Progress]:
    if quiet or not sys.stderr.isatty():
        return nullcontext(lambda _done, _total, _text: None)
    from assay.audits.render.progress import bar

    return bar()


def _tell(report: Report, *, quiet: bool, annotations: bool) -> None:
    from rich.console import Console

    from assay.audits.render import github, terminal

    console = Console(highlight=False)
    if quiet:
        terminal.conclude(report, console)
    else:
        terminal.show(report, console)
    if annotations and github.active(os.environ):
        typer.echo(github.commands(report), nl=False)
        github.summarise(report, os.environ)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and leave with its exit status."""
    raise SystemExit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command; its exit status. Whatever goes wrong in here is never a pass, and never a plain fail."""
    try:
        return int(app(list(arguments), prog_name="assay", standalone_mode=False) or 0)
    except BadUsage as error:
        typer.echo(f"assay: {error}", err=True)
        return USAGE
    except _TYPER_ERROR as error:
        error.show()
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("assay: interrupted; there is no verdict", err=True)
        return CRASH
    except Exception as error:  # noqa: BLE001 - the last door: a crash is a status of its own
        return _crashed(error)


def _crashed(error: Exception) -> int:
    import traceback

    traceback.print_exception(error)
    typer.echo(f"assay: the command itself failed ({type(error).__name__}: {error}); there is no verdict", err=True)
    return CRASH
