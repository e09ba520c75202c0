"""Where Triton's interpreter cannot do bf16, a bf16 result is not verified: neither passed nor failed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

SCRIPT = textwrap.dedent("""
    import sys
    from assay.audits import registry
    from assay.audits.run import Options, audit
    from assay.audits.subject import Server

    operation = registry.operation("mrope.tables")
    candidate = {item.name: item for item in registry.candidates(operation.name)}["kernel"]
    server = Server()
    server.preload(("doubtful",)) if "doubt" in sys.argv else None
    report = audit(operation, candidate, Options(cases=("image",), examples=0), server=server)
    print(sorted({(f.rule, f.dtype, f.verdict.name) for f in report.findings}), report.verdict.name)
""")
DOUBTFUL = "from assay.audits import interpreter\ninterpreter.VERSIONS = ((3, 0), (3, 1))\n"


def told(tmp_path, *arguments: str) -> str:
    (tmp_path / "doubtful.py").write_text(DOUBTFUL)
    command = [sys.executable, "-c", SCRIPT, *arguments]
    environment = {"PYTHONPATH": str(tmp_path), "TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_with_the_correction_the_kernel_is_judged(tmp_path) -> None:
    assert told(tmp_path) == "[] PASS"


def test_without_it_bf16_is_unknown(tmp_path) -> None:
    assert told(tmp_path, "doubt") == "[('mrope.tables.unverified', 'bfloat16', 'UNKNOWN')] UNKNOWN"
