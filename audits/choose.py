"""From what was asked on the command line to the list of (operation, candidate) pairs to audit."""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from assay.audits import peer, registry
from assay.audits.families import discovery
from assay.audits.terms import Candidate, Form, Operation

Describe = Callable[[str], "tuple[str, ...] | None"]
"""From ``package.module:function`` to its parameter names, None where it has no signature.

ValueError says why it could not be imported.
"""


class UsageError(ValueError):
    """What was asked does not name anything that can be audited; the message says what does."""


@dataclass(frozen=True)
class Request:
    """What to audit: targets are components or operations, none for all of them."""

    targets: tuple[str, ...] = ()
    candidate: str | None = None
    form: str | None = None
    families: tuple[str, ...] = ()
    patch: str | None = None
    pipeline: str | None = None
    peer: str | None = None


def plan(request: Request, describe: Describe | None = None) -> tuple[tuple[Operation, Candidate], ...]:
    """The audits that a request asks for, in a fixed order. :class:`UsageError` names what is possible."""
    if request.pipeline:
        return _pipelines(request)
    if request.peer:
        return _peer(request)
    operations = _operations(request.targets)
    if request.candidate:
        if request.patch:
            message = "--candidate is a function of its own, --patch changes models: ask for one or the other"
            raise UsageError(message)
        found = tuple(_function(operations, request.candidate, request.form, describe or describe_in_worker))
        return tuple(_by_rule_of(_known(request.families), found)) if request.families else found
    if request.form:
        message = "--form says how a --candidate is called; there is no --candidate"
        raise UsageError(message)
    if request.patch and not request.families:
        message = f"--patch needs --family, one of: {', '.join(discovery.installed_families())}"
        raise UsageError(message)
    if request.families:
        offered = _of_families(operations, _known(request.families), request.patch or "")
        pairs = tuple((op, candidate) for op, candidate in offered if request.targets or not candidate.by_name)
        if not pairs:
            message = f"no model is audited by {', '.join(op.name for op in operations)}"
            raise UsageError(message)
        return pairs
    own = ((op, item) for op in operations for item in registry.candidates(op.name) if not item.by_name)
    every = _of_families(operations, discovery.installed_families(), "")
    return (*own, *((op, candidate) for op, candidate in every if not registry.on_request(candidate)))


def _pipelines(request: Request) -> tuple[tuple[Operation, Candidate], ...]:
    """The user's pipeline, for the operations that judge pipelines."""
    others = {
        "--candidate": request.candidate, "--form": request.form, "--patch": request.patch,
        "--family": request.families, "--peer": request.peer,
    }  # fmt: skip
    if also := [name for name, value in others.items() if value]:
        message = f"--pipeline brings its own model: it goes without {', '.join(also)}"
        raise UsageError(message)
    ref = str(request.pipeline)
    found = ((op, registry.pipeline_candidate(op.name, ref)) for op in _operations(request.targets))
    pairs = tuple((op, candidate) for op, candidate in found if candidate is not None)
    if not pairs:
        judging = [name for name in registry.operations() if registry.pipeline_candidate(name, ref)]
        message = f"--pipeline is judged by {', '.join(judging)}, not by {', '.join(request.targets)}"
        raise UsageError(message)
    return pairs


def _peer(request: Request) -> tuple[tuple[Operation, Candidate], ...]:
    """The callables of a released package, all of them or the one that is named."""
    others = {"--form": request.form, "--patch": request.patch, "--family": request.families}
    if also := [name for name, value in others.items() if value]:
        message = f"--peer knows how its callables are called: it goes without {', '.join(also)}"
        raise UsageError(message)
    found = peer.peer(str(request.peer))
    pairs = tuple((op, item) for op in _operations(request.targets) for item in peer.candidates(found, op.name))
    named = tuple((op, item) for op, item in pairs if request.candidate in (None, item.name))
    if not named:
        have = ", ".join(sorted({item.name for _, item in pairs})) or "nothing of these operations"
        message = f"--candidate: {request.peer} has no {request.candidate or 'callable'} here; it has: {have}"
        raise UsageError(message)
    return named


def _operations(targets: tuple[str, ...]) -> tuple[Operation, ...]:
    everything = registry.operations()
    if not targets:
        return tuple(everything.values())
    found: dict[str, Operation] = {}
    for target in targets:
        inside = {name: op for name, op in everything.items() if target in (name, op.component)}
        if not inside:
            known = [*registry.component_names(), *everything]
            near = difflib.get_close_matches(target, known, n=3)
            hint = f" (did you mean {' or '.join(near)}?)" if near else ""
            message = f"no component or operation named {target!r}{hint}; there are: {', '.join(known)}"
            raise UsageError(message)
        found |= inside
    return tuple(found.values())


def _known(families: tuple[str, ...]) -> tuple[str, ...]:
    installed = discovery.installed_families()
    for name in families:
        if name not in installed and name not in (known := registry.families()):
            version = importlib.metadata.version("transformers")
            further = ", ".join(other for other in known if other not in installed)
            message = (
                f"transformers {version} has no multi-axis family {name!r}; it has: {', '.join(installed)}; and for "
                f"what needs no such axes: {further}"
            )
            raise UsageError(message)
    return families


def _of_families(
    operations: Iterable[Operation], families: Iterable[str], patch: str
) -> Iterator[tuple[Operation, Candidate]]:
    """Family after family, so that what is learnt of one stands together."""
    for name in families:
        for operation in operations:
            candidate = registry.family_candidate(operation.name, name, patch)
            if candidate is not None:
                yield operation, candidate


def _by_rule_of(
    families: tuple[str, ...], pairs: tuple[tuple[Operation, Candidate], ...]
) -> Iterator[tuple[Operation, Candidate]]:
    """Functions judged by what each family fixes, which is what its own code is judged by."""
    for name in families:
        own = {op.name: registry.family_candidate(op.name, name) for op, _ in pairs if op.level == "function"}
        judged = [(op, candidate, model) for op, candidate in pairs if (model := own.get(op.name))]
        if not judged:
            found = discovery.family(name)
            message = f"--family: {name} fixes nothing of {', '.join(op.name for op, _ in pairs)}"
            raise UsageError(f"{message}: {found}" if isinstance(found, str) else message)
        for op, candidate, model in judged:
            named = f"{candidate.name}@{name}"
            yield op, replace(candidate, name=named, scope=model.scope, judged_as=name)


def _function(
    operations: tuple[Operation, ...], ref: str, form: str | None, describe: Describe
) -> Iterator[tuple[Operation, Candidate]]:
    built_in = [(op, item) for op in operations for item in _built_in(op) if item.name == ref]
    if built_in:
        yield from built_in
        return
    if ":" not in ref:
        names = sorted({item.name for op in operations for item in registry.candidates(op.name)})
        message = f"--candidate: expected package.module:function or one of {', '.join(names)}, got {ref!r}"
        raise UsageError(message)
    if len(operations) != 1:
        message = f"--candidate needs one operation to be judged by, one of: {', '.join(op.name for op in operations)}"
        raise UsageError(message)
    operation = operations[0]
    if not operation.forms:
        how = "models, not functions: ask with --family, and --patch for a patch"
        if registry.pipeline_candidate(operation.name, ref):
            how = "pipelines, not functions: ask with --pipeline"
        message = f"{operation.name} judges {how}"
        raise UsageError(message)
    chosen = form_named(operation, form) if form else _recognised(operation, ref, describe)
    yield operation, Candidate(
        operation=operation.name, name=ref, form=chosen.name, origin=ref, version=_version(ref),
        target={"kind": "import", "ref": ref, "operation": operation.name, "public": True},
    )  # fmt: skip


def _built_in(operation: Operation) -> Iterator[Candidate]:
    yield from registry.candidates(operation.name)
    for fault in registry.faults(operation.name):
        yield Candidate(
            operation=operation.name, name=f"fault:{fault.name}", origin=fault.link,
            trusted=operation.level == "function",
            target={"kind": "fault", "operation": operation.name, "name": fault.name},
        )  # fmt: skip


def form_named(operation: Operation, name: str) -> Form:
    """A call form by name. UsageError lists the forms."""
    for form in operation.forms:
        if form.name == name:
            return form
    message = f"--form: {operation.name} has no call form {name!r}; it has:\n{_forms(operation.forms)}"
    raise UsageError(message)


def recognised(operation: Operation, parameters: tuple[str, ...]) -> tuple[Form, ...]:
    """The call forms that a signature fits: those whose parameters it has, less those that another one extends."""
    have = set(parameters)
    fitting = [form for form in operation.forms if set(form.parameters) <= have]
    return tuple(form for form in fitting if not any(set(form.parameters) < set(other.parameters) for other in fitting))


def _recognised(operation: Operation, ref: str, describe: Describe) -> Form:
    try:
        parameters = describe(ref)
    except ValueError as error:
        message = f"--candidate: {error}"
        raise UsageError(message) from error
    if parameters is None:
        message = f"{ref} has no signature to recognise; say how it is called with --form:\n{_forms(operation.forms)}"
        raise UsageError(message)
    fitting = recognised(operation, parameters)
    if len(fitting) == 1:
        return fitting[0]
    fitting = tuple(form for form in fitting if form.parameters)  # others fit whatever there is
    what = "fits several call forms" if fitting else "fits no call form by its parameter names"
    message = (
        f"{ref}({', '.join(parameters)}) {what} of {operation.name}; say which with --form:\n"
        f"{_forms(fitting or operation.forms)}"
    )
    raise UsageError(message)


def _forms(forms: Iterable[Form]) -> str:
    return "\n".join(f"  {form.name:16} {form.summary}" for form in forms)


def describe_in_worker(ref: str) -> tuple[str, ...] | None:
    """Parameter names of a function, read in a worker of its own: importing foreign code is running it."""
    from assay.audits.server import Server, parameters

    with Server() as server:
        return parameters(server, ref)


def _version(ref: str) -> str:
    package = ref.partition(":")[0].partition(".")[0]
    names = importlib.metadata.packages_distributions().get(package, ())
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
