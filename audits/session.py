"""One run of audits: from what was asked to a report with its waivers, and the files it is written to."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Iterator, Mapping, Sized
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import assay
from assay.audits import cases, environment, manual, peer, registry, waive, waivers
from assay.audits.choose import Describe, Request, UsageError, plan
from assay.audits.pool import Pool
from assay.audits.render import html, junit, markdown, sarif, schema
from assay.audits.run import Options, audit, merge
from assay.audits.server import Server
from assay.audits.terms import Candidate, Numeric, Operation, Report, Waiver
from assay.audits.usage import BadUsage

Work = tuple[Operation, Candidate, Options]
WAIVERS = Path("waivers.toml")
"""Where waivers are looked for when nothing else is said."""
FEWER = 4
"""By how much the search is cut for each candidate of an audit that names no family and no candidate."""
MODELS = ("transformers.modeling_utils", "transformers.processing_utils")
"""What every model of transformers imports, which takes seconds."""

Progress = Callable[[int, int, str], None]
"""Is told how many candidates are finished, of how many, and what is in hand."""


def _quiet(_done: int, _total: int, _text: str) -> None:
    pass


def conduct(request: Request, options: Options, progress: Progress = _quiet, server: Server | None = None) -> Report:
    """Audit all that was asked for, into one report. BadUsage names the option and what is possible.

    ``server`` is a worker that was started before; it is used first, and stopped at the end.
    """
    with workers(request, options, server) as pool:
        elsewhere = _elsewhere(pool, options) if options.python else {}
        work = planned(request, options, pool.describe)
        report = merge(_audits(work, pool, progress, preloaded(request)))
    _refuse_misfit(report)
    if elsewhere:
        report = replace(report, environment=environment.beside(report.environment, elsewhere))
    asked = (request.targets, request.candidate, request.families, request.patch, request.pipeline, request.peer)
    narrowed = any(asked)
    return replace(report, request=_asked(request, options), filtered=report.filtered or narrowed)


def _released(request: Request) -> peer.Peer | None:
    return peer.peer(request.peer) if request.peer in peer.names() else None


def workers(request: Request, options: Options, server: Server | None = None) -> Pool:
    """What asks the candidates of a request: a released package has environment variables of its own."""
    released = _released(request)
    return Pool(server, options.python, released.variables if released else None)


def preloaded(request: Request) -> tuple[str, ...]:
    """The modules of a released package that its workers import once for all."""
    released = _released(request)
    return released.preload if released else ()


def _elsewhere(pool: Pool, options: Options) -> Mapping[str, str]:
    """The versions of the candidates' environment. BadUsage when no worker runs in it."""
    try:
        return pool.environment(options.device)
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        needs = "Python 3.11 or later with torch, numpy, pydantic and safetensors"
        message = f"{options.python} cannot be asked; it has to be {needs}: {error}"
        raise BadUsage(message) from error


def _refuse_misfit(report: Report) -> None:
    """BadUsage that a worker raised: what a user's function returns is known only where it runs."""
    told = f"{BadUsage.__name__}: "
    for item in report.findings:
        if item.rule.endswith(".unloadable") and item.message.startswith(told):
            raise BadUsage(item.message.removeprefix(told).partition(' File "')[0])
        if item.rule.endswith(".raises") and item.measured == BadUsage.__name__:
            raise BadUsage(item.message.partition(' File "')[0])


def _audits(work: list[Work], pool: Pool, progress: Progress, preload: tuple[str, ...]) -> list[Report]:
    """The reports in the order of the work. Foreign candidates are judged side by side, ours one after another.

    Ours runs in a process of judges, whose settings a fault may change: in this one where there is nothing else, in one
    of its own beside foreign candidates, for which the judge here mostly waits.
    """
    reports: dict[int, Report] = {}

    def one(place: int, server: Server | None) -> None:
        operation, candidate, fitted = work[place]
        told = _told(progress, reports, len(work))
        told(f"{operation.name} {candidate.name}")
        reports[place] = audit(operation, candidate, fitted, server=server, progress=told)

    foreign = [place for place, (_, candidate, _) in enumerate(work) if not candidate.trusted]
    ours = [place for place, (_, candidate, _) in enumerate(work) if candidate.trusted]
    if not foreign:
        for place in ours:
            one(place, None)
    else:
        modelled = any({"family", "pipeline"} & set(work[place][1].target) for place in foreign)
        with _beside([work[place] for place in ours]) as judged:
            pool.each(foreign, one, (*(MODELS if modelled else ()), *preload))
            reports |= zip(ours, judged(), strict=True)
    return [reports[place] for place in range(len(work))]


@contextlib.contextmanager
def _beside(work: list[Work]) -> Iterator[Callable[[], list[Report]]]:
    """Have trusted candidates judged in another process; the function waits for their reports."""
    if not work:
        yield list
        return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as judges:
        found = [judges.submit(_judged, operation.name, candidate, fitted) for operation, candidate, fitted in work]
        try:
            yield lambda: [report.result() for report in found]
        finally:
            judges.shutdown(cancel_futures=True)


def _judged(operation: str, candidate: Candidate, options: Options) -> Report:
    return audit(registry.operation(operation), candidate, options)


def _told(progress: Progress, finished: Sized, total: int) -> Callable[[str], None]:
    return lambda text: progress(len(finished), total, text)


def planned(request: Request, options: Options, describe: Describe | None = None) -> list[Work]:
    """The audits to make, each with the options that mean something to its operation."""
    try:
        pairs = plan(request, describe)
    except (UsageError, registry.Unknown) as error:
        message = str(error)
        raise BadUsage(message) from error
    operations = {operation.name: operation for operation, _ in pairs}
    if options.python:
        pairs = tuple((operation, elsewhere_too(candidate)) for operation, candidate in pairs)
        if pairs and all(candidate.trusted for _, candidate in pairs):
            raise BadUsage("--python: all of this is the project's own, which is judged where the command runs")
    fits = {name: _fit(operation, options) for name, operation in operations.items()}
    _refuse_unused(operations, fits, options)
    work = [
        (operation, candidate, fit if request.families or request.candidate else _shared(operation, candidate, fit))
        for operation, candidate in pairs
        if (fit := fits[operation.name])
    ]
    _refuse_unbuilt(work)
    return work


def elsewhere_too(candidate: Candidate) -> Candidate:
    """What transformers does, which is another thing in another environment; the reference is this one's everywhere."""
    return replace(candidate, trusted=candidate.trusted and candidate.origin != "transformers")


def _fit(operation: Operation, options: Options) -> Options | None:
    """The options that this operation knows; None when a filter leaves nothing of it."""
    known = {name for law in registry.laws(operation.name) for name in (law.name, f"{operation.name}.{law.name}")}
    fit = replace(
        options,
        laws=tuple(name for name in options.laws if name in known),
        cases=tuple(name for name in options.cases if not _complaint(operation, name)),
        dtypes=tuple(name for name in options.dtypes if name in _dtypes(operation)),
    )
    pairs = ((options.laws, fit.laws), (options.cases, fit.cases), (options.dtypes, fit.dtypes))
    return None if any(asked and not left for asked, left in pairs) else fit


def _shared(operation: Operation, candidate: Candidate, options: Options) -> Options:
    """The options of one candidate among all: what nobody named shares the search.

    Families and costly candidates are judged briefly besides; not where relations are what judges: those of whole
    models and of positions are put to every case.
    """
    family = "family" in candidate.target and isinstance(operation.expect, Numeric)
    return replace(options, examples=-(-options.examples // FEWER), brief=family or candidate.costly)


def _dtypes(operation: Operation) -> tuple[str, ...]:
    return operation.dtypes + operation.further_dtypes


def _complaint(operation: Operation, case: str) -> str:
    try:
        cases.parse(operation, case)
    except cases.BadCase as error:
        return str(error)
    return ""


def _refuse_unused(operations: Mapping[str, Operation], fits: Mapping[str, Options | None], options: Options) -> None:
    """BadUsage for a law, case or dtype that no chosen operation knows."""
    if not operations or (not (options.laws or options.cases or options.dtypes)):
        return
    among = ", ".join(operations)
    for name in options.laws:
        laws = {f"{op}.{law.name}" for op in operations for law in registry.laws(op)}
        if not any(name in (rule, rule.rpartition(".")[2]) for rule in laws):
            message = f"--law: no law {name!r} of {among}; there are: {', '.join(sorted(laws))}"
            raise BadUsage(message)
    for name in options.cases:
        complaints = [_complaint(operation, name) for operation in operations.values()]
        if all(complaints):
            message = "--case: " + "\n".join(complaints)
            raise BadUsage(message)
    for name in options.dtypes:
        dtypes = sorted({dtype for operation in operations.values() for dtype in _dtypes(operation)})
        if name not in dtypes:
            message = f"--dtype: {name!r} is no dtype of {among}; there are: {', '.join(dtypes) or 'none'}"
            raise BadUsage(message)
    if not any(fits.values()):
        message = f"--law, --case and --dtype together leave nothing of {among}"
        raise BadUsage(message)


def _refuse_unbuilt(work: list[Work]) -> None:
    """BadUsage for a case given as JSON that cannot be built: a misfit that is asked for is no fault of the checker."""
    for operation, candidate, fit in work:
        for case in fit.cases:
            try:
                cases.built(operation, case, candidate.scope, (fit.dtypes or operation.dtypes)[0])
            except cases.BadCase as error:
                message = f"--case: {error}"
                raise BadUsage(message) from error


def _asked(request: Request, options: Options) -> Mapping[str, Any]:
    """What was asked, as plain JSON; what was left out is left out."""
    asked = {**asdict(request), **asdict(options)}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asked.items()}
    return {key: value for key, value in sorted(plain.items()) if value not in (None, [], "") and value is not False}


def today() -> dt.date:
    """The date that decides whether a waiver holds."""
    return dt.datetime.now(dt.UTC).date()


def excuses(path: Path | None) -> tuple[Waiver, ...]:
    """The waivers of a file: of ``waivers.toml`` here, if there is one, when none is named."""
    if path is None:
        return waivers.load(WAIVERS, today()) if WAIVERS.is_file() else ()
    return waivers.load(path, today())


def excused(report: Report, accepted: tuple[Waiver, ...]) -> Report:
    """The report after its waivers, as of today."""
    return waive.apply(report, accepted, today())


def check_python(path: Path | str | None, option: str) -> None:
    """BadUsage, before any work is done, for an interpreter that is not there. A report is looked at later."""
    told = path and not str(path).endswith(".json")
    if told and not (Path(str(path)).is_file() and os.access(str(path), os.X_OK)):
        message = f"{option}: {path} is no Python{' and no report, *.json' if option == '--against' else ''}"
        raise BadUsage(message)


def check_outputs(paths: Mapping[str, Path]) -> None:
    """BadUsage, before any work is done, for an output whose folder does not exist."""
    for name, path in paths.items():
        if path.is_dir() or not path.absolute().parent.is_dir():
            message = f"--{name}: cannot write {path}: it is a folder, or its folder does not exist"
            raise BadUsage(message)


def write(report: Report, paths: Mapping[str, Path]) -> None:
    """Write the report to each path in its format: ``json``, ``junit``, ``sarif``, ``markdown`` or ``html``."""
    for name, text in _rendered(report, paths):
        written(paths[name], text, name)


def written(path: Path, text: str, name: str = "html") -> None:
    """Write a file; BadUsage with the option's name where that cannot be."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"--{name}: cannot write {path}: {error.strerror}"
        raise BadUsage(message) from error


def _rendered(report: Report, paths: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    pages = manual.pages(report) if {"sarif", "html"} & set(paths) else {}
    formats: dict[str, Callable[[], str]] = {
        "json": lambda: schema.dump(report),
        "junit": lambda: junit.render(report),
        "sarif": lambda: sarif.render(report, pages, assay.__version__),
        "markdown": lambda: markdown.render(report),
        "html": lambda: html.render(report, pages),
    }
    yield from ((name, formats[name]()) for name in paths)
