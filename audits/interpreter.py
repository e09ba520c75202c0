"""Run Triton kernels on the CPU: switches Triton's interpreter on and corrects the bf16 arithmetic it gets wrong.

The interpreter keeps bf16 numbers as 16-bit integers. It truncates where hardware rounds to nearest even, and it adds,
multiplies, compares and dots the bit patterns as if they were integers, without an error. `enable()` replaces those
steps by fp32 arithmetic rounded once, gives FMA its single rounding, and then tries both on numbers with known answers.
Where the answers are wrong, everything is put back and `bf16` is False: a bf16 result is then not verified.
"""

# mypy: disable-error-code="import-untyped"
# Triton ships neither stubs nor py.typed.

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

VERSIONS = ((3, 5), (3, 10))
"""Triton releases whose interpreter this file knows: the first, and the one after the last."""


@dataclass(frozen=True)
class Interpretation:
    """Whether kernels run on the CPU, and whether their bf16 results mean anything."""

    active: bool
    bf16: bool
    reason: str
    """Why `active` or `bf16` is False; empty if both are True."""


def enable() -> Interpretation:
    """Interpret every Triton kernel that is decorated from now on, with bf16 corrected if that can be done.

    Call it before anything imports Triton: Triton decides when a kernel, its own library functions included, is
    decorated, and never again. If that is too late, the environment is left alone and the reason says so. Calling
    it twice changes nothing.
    """
    if "triton" in sys.modules and not _interpreting():
        return Interpretation(
            False, False, "bf16 not verified: Triton was imported before interpretation was asked for"
        )
    os.environ["TRITON_INTERPRET"] = "1"
    return _corrected()


@cache
def _corrected() -> Interpretation:
    try:
        import triton
        from triton.runtime import interpreter
    except ImportError as error:
        return Interpretation(False, False, f"bf16 not verified: Triton cannot be imported: {error}")
    release = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if not VERSIONS[0] <= release < VERSIONS[1]:
        known = " to ".join(".".join(map(str, version)) for version in VERSIONS)
        reason = f"bf16 not verified: Triton {triton.__version__}, and the correction is for {known} (exclusive)"
        return Interpretation(True, False, reason)
    builder = interpreter.InterpreterBuilder
    missing = [name for name in _REPLACED if not hasattr(builder, name)]
    if missing:
        return Interpretation(True, False, f"bf16 not verified: this Triton's interpreter has no {', '.join(missing)}")
    before = {name: getattr(builder, name) for name in _REPLACED}
    for name, member in _replacements(builder).items():
        setattr(builder, name, member)
    failed = _failed_probes(interpreter)
    if failed:
        for name, member in before.items():
            setattr(builder, name, member)
        return Interpretation(True, False, f"bf16 not verified: after the correction, {failed}")
    return Interpretation(True, True, "")


def _interpreting() -> bool:
    from triton.language import standard
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(standard.softmax, InterpretedFunction)


def narrow(values: Array) -> Array:
    """fp32 to the bits of bf16, round to nearest even; NaN stays NaN, overflow becomes infinite."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where((bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000), quiet, rounded).astype(np.uint16)


def widen(bits: Array) -> Array:
    """The bits of bf16 to fp32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _is_bf16(handle_or_type: Any) -> bool:
    return bool(getattr(handle_or_type, "dtype", handle_or_type).scalar.name == "bf16")


def _numbers(handle: Any) -> Array:
    data: Array = widen(handle.data) if _is_bf16(handle) else handle.data
    return data


_REPLACED = ("cast_impl", "create_fp_to_fp", "binary_op", "ternary_op", "unary_op", "create_dot", "create_fma")


def _replacements(builder: Any) -> dict[str, Callable[..., Any]]:
    """Methods of Triton's InterpreterBuilder by name; each falls back on the original where no bf16 is involved."""
    from triton.runtime.interpreter import TensorHandle, _get_np_dtype, _ir

    cast_impl, create_fp_to_fp, create_dot = builder.cast_impl, builder.create_fp_to_fp, builder.create_dot
    binary_op, ternary_op, unary_op = builder.binary_op, builder.ternary_op, builder.unary_op

    def packed(values: Array, dtype: Any) -> Any:
        """A handle of `values`; a comparison keeps its bools under the operands' dtype, as Triton does."""
        rounded = narrow(values) if dtype.scalar.name == "bf16" and values.dtype != np.bool_ else values
        return TensorHandle(rounded, dtype.scalar)

    def cast(self: Any, src: Any, dst_type: Any) -> Any:
        if not (_is_bf16(src) or _is_bf16(dst_type)) or src.dtype.scalar == dst_type.scalar:
            return cast_impl(self, src, dst_type)
        numbers = _numbers(src)
        if _is_bf16(dst_type):
            return packed(numbers.astype(np.float32), dst_type)
        return TensorHandle(numbers.astype(_get_np_dtype(dst_type)), dst_type.scalar)

    def fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        exact_pair = {src.dtype.scalar.name, dst_type.scalar.name} == {"fp32", "bf16"}
        if exact_pair and rounding_mode in (None, _ir.ROUNDING_MODE.RTNE):
            return cast(self, src, dst_type)
        return create_fp_to_fp(self, src, dst_type, rounding_mode)

    def binary(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if not _is_bf16(lhs):
            return binary_op(self, lhs, rhs, op)
        return packed(op(_numbers(lhs), _numbers(rhs)), lhs.dtype)

    def ternary(self: Any, lhs: Any, rhs: Any, other: Any, op: Any) -> Any:
        if op is np.where or not _is_bf16(other):  # a selection moves bits
            return ternary_op(self, lhs, rhs, other, op)
        return packed(op(_numbers(lhs), _numbers(rhs), _numbers(other)), other.dtype)

    def unary(self: Any, arg: Any, op: Any) -> Any:
        return packed(op(_numbers(arg)), arg.dtype) if _is_bf16(arg) else unary_op(self, arg, op)

    def dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if not (_is_bf16(a) or _is_bf16(b)):
            return create_dot(self, a, b, d, *rest)
        return packed(np.matmul(_numbers(a), _numbers(b), dtype=np.float32) + _numbers(d), d.dtype)

    def fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        numbers = _numbers(z)
        wide = (
            np.float64 if numbers.dtype == np.float32 else np.float32 if numbers.dtype == np.float16 else numbers.dtype
        )
        value = _numbers(x).astype(wide) * _numbers(y).astype(wide) + numbers.astype(wide)
        return packed(value.astype(numbers.dtype), z.dtype)

    return dict(zip(_REPLACED, (cast, fp_to_fp, binary, ternary, unary, dot, fma), strict=True))


_PATTERNS = (
    (0x3F808000, 0x3F80, "a tie to the even neighbour below"),
    (0x3F818000, 0x3F82, "a tie to the even neighbour above"),
    (0x3F808001, 0x3F81, "just above a tie"),
    (0x7F7FFFFF, 0x7F80, "overflow to infinity"),
    (0xFF800000, 0xFF80, "minus infinity"),
    (0x7F800001, 0x7FC0, "NaN with a payload that bf16 drops"),
    (0x00008001, 0x0001, "a denormal"),
    (0x80000000, 0x8000, "minus zero"),
)


def _failed_probes(interpreter: Any) -> str:
    """What the corrected builder gets wrong; empty if nothing."""
    tl, handle, builder = interpreter.tl, interpreter.TensorHandle, interpreter.InterpreterBuilder()
    try:
        for bits, expected, what in _PATTERNS:
            src = handle(np.array([bits], dtype=np.uint32).view(np.float32), tl.float32)
            for got in (
                builder.cast_impl(src, tl.bfloat16),
                builder.create_fp_to_fp(src, tl.bfloat16, interpreter._ir.ROUNDING_MODE.RTNE),
            ):
                if int(got.data[0]) != expected:
                    return f"rounding {what} gives {int(got.data[0]):#06x} instead of {expected:#06x}"
        two, three = (handle(narrow(np.full((1, 1), v, np.float32)), tl.bfloat16) for v in (2.0, 3.0))
        zero = handle(np.zeros((1, 1), np.float32), tl.float32)
        answers = {
            "2 + 3": (widen(builder.create_fadd(two, three).data), 5.0),
            "2 * 3": (widen(builder.create_fmul(two, three).data), 6.0),
            "-2 < 3": (
                builder.create_fcmpOLT(builder.create_fsub(two, builder.create_fmul(two, two)), three).data,
                1.0,
            ),
            "dot": (builder.create_dot(two, three, zero, None, None).data, 6.0),
        }
    except Exception as error:  # noqa: BLE001 - unknown internals may raise anything; bf16 is then not verified
        return f"{type(error).__name__}: {error}"
    wrong = [f"{what} = {got.item()}" for what, (got, expected) in answers.items() if got.item() != expected]
    return ", ".join(wrong)
