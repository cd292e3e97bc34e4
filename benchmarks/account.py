"""What a program that is compiled for a TPU takes, as its compiler says it, instruction by
instruction.

The compiler writes into its program the cycles that it expects of each instruction, by which it
schedules them. Their sum, over the chip's clock, is an estimate of the program's time; what of it
are products, what only moves data, and what the devices tell each other, is told apart here.
Nothing of it was measured. By the same account a product of two matrices of 8192 x 8192 reaches 88
% of a v5e's published peak, and adding two large arrays half of its published bandwidth.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks import absent

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
COLLECTIVES += ("send",)  # between slices
# Instructions that change where data lies, and nothing else.
MOVES = {"copy", "slice", "concatenate", "transpose", "reshape", "bitcast", "broadcast"}
MOVES |= {"dynamic-slice", "dynamic-update-slice", "gather", "copy-start", "copy-done"}
# What may stand beside them in a fusion that moves data all the same.
BESIDE = {"parameter", "constant", "tuple", "get-tuple-element", "iota", "convert", "select"}
BESIDE |= {"compare", "and", "or", "add-dependency"}
KINDS = ("products", "fp32 products", "moves", "padding", "collectives", "the rest")
HEAD = "estimate, ms | of the peak | moves | padding | fp32 products"  # of `cells`


@dataclass(frozen=True)
class Instruction:
    """One of a computation: its operation, the type of its result, and the line as it stands."""

    opcode: str
    result: str
    line: str

    @property
    def cycles(self) -> int:
        """Cycles that the compiler expects of one run; 0 where it expects none or cannot tell."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.line)
        # What it cannot tell is below zero, written as a number without a sign.
        cycles = int(found[1]) if found else 0
        return cycles if cycles < 2**63 else 0

    def named(self, key: str) -> str:
        """Name of the computation that it calls as `key`, or ""."""
        found = re.search(rf"\b{key}=%([\w.\-]+)", self.line)
        return found[1] if found else ""


@dataclass(frozen=True)
class Account:
    """Cycles of a program by kind, and bytes of what devices tell each other by operation."""

    cycles: dict[str, int]
    collectives: dict[str, tuple[int, int]]  # how often, and bytes of all results on a device
    largest: list[tuple[int, str]]  # cycles and a word on the costliest instructions

    @property
    def total(self) -> int:
        """Cycles of the whole program."""
        return sum(self.cycles.values())

    def share(self, kind: str) -> float:
        """Part of all cycles that is of a kind."""
        return self.cycles.get(kind, 0) / max(self.total, 1)


def account(text: str) -> Account:
    """The account of a program by its text (`Compiled.as_text()`)."""
    computations, entry = _computations(text)
    cycles: Counter[str] = Counter()
    collectives: dict[str, tuple[int, int]] = {}
    found: list[tuple[int, str]] = []
    for instruction, times in _runs(computations, entry, 1):
        taken = instruction.cycles * times
        cycles[_kind(instruction, computations)] += taken
        if taken:
            found.append((taken, _told(instruction)))
        # Asynchronous ones are two instructions; the first says what it does.
        name = instruction.opcode.removesuffix("-start")
        if name in COLLECTIVES:
            count, size = collectives.get(name, (0, 0))
            collectives[name] = count + times, size + times * _bytes(instruction)
    return Account(dict(cycles), collectives, sorted(found, reverse=True))


def cells(found: Account, device_kind: str, least: float) -> str:
    """Cells below `HEAD`, empty for what is no TPU; `least` are the seconds at the chip's peak."""
    chip = absent.chip(device_kind)
    if chip is None or not found.total:
        return " | ".join([""] * 5)
    seconds = found.total / chip.clock
    shares = [found.share(kind) for kind in ("moves", "padding", "fp32 products")]
    parts = " | ".join(f"{share:.0%}" for share in shares)
    return f"{seconds * 1e3:.2f} | {least / seconds:.0%} | {parts}"


def _computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Instructions of each computation by its name, and the name of the one that is run."""
    found: dict[str, list[Instruction]] = {}
    name = entry = ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = head[2]
            entry = name if head[1] else entry
            found[name] = []
        body = re.match(r"\s+(?:ROOT )?%[\w.\-]+ = (.+?) ([a-z][\w\-]*)\(", line)
        if body and name:
            found[name].append(Instruction(body[2], body[1], line))
    return found, entry


def _runs(
    computations: dict[str, list[Instruction]], name: str, times: int
) -> Iterator[tuple[Instruction, int]]:
    """Every instruction that a computation leads to, and how often it is run."""
    for instruction in computations[name]:
        inner, count = instruction.named("to_apply") or instruction.named("calls"), 1
        if instruction.opcode == "while":
            # A loop ends where its counter is no longer below a constant.
            condition = computations[instruction.named("condition")]
            bounds = [int(n) for i in condition for n in re.findall(r" constant\((\d+)\)", i.line)]
            inner, count = instruction.named("body"), max(bounds, default=1)
        if inner and instruction.opcode in ("while", "call", "async-start"):
            yield from _runs(computations, inner, times * count)
        yield instruction, times


def _kind(instruction: Instruction, computations: dict[str, list[Instruction]]) -> str:
    """Which of `KINDS` an instruction is; a fusion is what its costliest part is."""
    inner = list(_inside(instruction, computations))
    codes = {i.opcode.removesuffix("-start").removesuffix("-done") for i in inner}
    products = [i.result for i in inner if i.opcode in ("convolution", "dot")]
    if codes & set(COLLECTIVES):
        return "collectives"
    if products:
        operands = [i.line for i in inner if i.opcode in ("convolution", "dot")]
        exact = any("operand_precision={highest" in line for line in operands)
        return "fp32 products" if exact or _all_float32(inner) else "products"
    if codes <= MOVES | BESIDE and codes & MOVES:
        return "moves"
    return (
        "padding" if codes <= MOVES | BESIDE | {"pad", "maximum"} and "pad" in codes else "the rest"
    )


def _inside(
    instruction: Instruction, computations: dict[str, list[Instruction]]
) -> Iterator[Instruction]:
    """What an instruction is made of: of a fusion, and of fusions in it, their instructions."""
    if instruction.opcode != "fusion":
        yield instruction
        return
    for part in computations[instruction.named("calls")]:
        yield from _inside(part, computations)


def _all_float32(inner: list[Instruction]) -> bool:
    """Whether no bfloat16 goes into a fusion's products."""
    return not any("bf16[" in i.result for i in inner)


def _told(instruction: Instruction) -> str:
    """An instruction in a word: where it comes from in the program that was traced."""
    name = re.search(r'op_name="([^"]*)"', instruction.line)
    result = re.sub(r"\{[^}]*\}", "", instruction.result)
    return f"{instruction.opcode} {result:.60} {name[1].split('/')[-1] if name else ''}"


SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}


def _bytes(instruction: Instruction) -> int:
    """Bytes of what a collective operation gives on a device."""
    sizes = [0]
    for kind, axes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", instruction.result):
        count = math.prod(int(axis) for axis in axes.split(",") if axis)
        sizes.append(SIZES.get(kind, 4) * count)
    # An asynchronous one names what goes in beside what comes out; others may join several arrays.
    one = instruction.opcode.endswith("-start") or instruction.opcode == "send"
    return max(sizes) if one else sum(sizes)
