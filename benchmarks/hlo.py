"""What a compiled program does, read from its optimised HLO text: matrix products, kernels and communication.

XLA's own cost analysis counts the body of a loop once; here everything is multiplied by how often it runs.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_CALLED = {
    "fusion": r"calls=%?([\w.\-]+)",
    "call": r"to_apply=%?([\w.\-]+)",
    "async-start": r"calls=%?([\w.\-]+)",
}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "s16": 16,
         "u16": 16, "f32": 32, "s32": 32, "u32": 32, "f64": 64, "s64": 64, "u64": 64, "token": 0}  # fmt: skip


_ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'


class Work(NamedTuple):
    """What one device does in one run of a program.

    matmul_flops: of dots and convolutions, 2 per multiplication. kernels: how often each custom kernel runs.
    collective_bytes: result bytes of communication, by kind.
    """

    matmul_flops: float
    kernels: Counter[str]
    collective_bytes: Counter[str]


class _Instruction(NamedTuple):
    name: str
    result: str  # type, such as "bf16[4,512]{1,0}"
    operation: str
    rest: str  # operands and attributes


def analyse(text: str) -> Work:
    """The work of a program's entry computation; raises ValueError if the text cannot be read."""
    computations, entry = _parse(text)
    _keep_starts(computations)
    memo: dict[str, Work] = {}

    def total(name: str) -> Work:
        if name not in memo:
            memo[name] = _sum(
                [(1, _own(instruction, computations[name])) for instruction in computations[name].values()]
                + [
                    (times, total(called))
                    for instruction in computations[name].values()
                    for times, called in _calls(instruction, computations, total)
                ]
            )
        return memo[name]

    return total(entry)


def _parse(text: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[1], {})
            entry = header[1] if line.startswith("ENTRY") else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current[found[1]] = _Instruction(*found.groups())
    if entry is None:
        raise ValueError("this is not the text of an HLO module")
    return computations, entry


def _keep_starts(computations: dict[str, dict[str, _Instruction]]) -> None:
    """Leaves of a collective that XLA for TPUs has fused with products its start alone.

    Its steps and its end, in the fusions that follow and in their loops, are written as the whole collective again.
    Counted each time, a step of Llama-2-7B on v5e:4x4 seemed to move 90 GB a chip; it moves 30.
    """
    fused = {
        name: [each for each in body.values() if each.operation.removesuffix("-start") in _COLLECTIVES]
        for name, body in computations.items()
    }
    starting = {name for name, body in computations.items() if any(_ASYNC_START in each.rest for each in body.values())}
    started = {_channel(each) for name in starting for each in fused[name]} - {None}
    for name, found in fused.items():
        for each in found:
            if name not in starting and _channel(each) in started:
                del computations[name][each.name]


def _channel(instruction: _Instruction) -> str | None:
    """What the parts of one collective have in common."""
    found = re.search(r"channel_id=(\d+)", instruction.rest)
    return found[1] if found else None


def _calls(instruction: _Instruction, computations: dict, total) -> list[tuple[int, str]]:
    """The computations that an instruction runs, and how often; of a conditional's branches the dearest."""
    rest = instruction.rest
    if instruction.operation == "while":
        body = re.search(r"body=%?([\w.\-]+)", rest)
        return [(_trips(instruction, computations), body[1])] if body else []
    if instruction.operation == "conditional":
        named = re.search(r"branch_computations=\{([^}]*)\}", rest)
        names = (
            [name.strip().lstrip("%") for name in named[1].split(",")]
            if named
            else re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", rest)
        )
        return [(1, max(names, key=lambda name: total(name).matmul_flops))]
    pattern = _CALLED.get(instruction.operation)
    found = re.search(pattern, rest) if pattern else None
    return [(1, found[1])] if found else []


def _trips(loop: _Instruction, computations: dict) -> int:
    """How often a loop runs: as XLA notes it, else from its counter, which starts at 0 and grows to a constant."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if known:
        return int(known[1])
    condition, body = (computations[_found(rf"{part}=%?([\w.\-]+)", loop.rest)] for part in ("condition", "body"))
    compare = next((each for each in condition.values() if each.operation == "compare"), None)
    if compare is not None and "direction=LT" in compare.rest:
        counter, end = (condition[name] for name in _operands(compare)[:2])
        place = re.search(r"index=(\d+)", counter.rest)
        limit = re.match(r"(\d+)\)", end.rest)
        if place and limit:
            step = _step(_operands(_root(body))[int(place[1])], int(place[1]), body)
            return -(-int(limit[1]) // step)
    raise ValueError(f"cannot tell how often the loop {loop.name} runs")


def _step(name: str, place: int, body: dict[str, _Instruction]) -> int:
    """What a loop's body adds to the counter that enters it at `place`: a chain of additions of constants."""
    instruction = body[name]
    if instruction.operation == "get-tuple-element" and re.search(rf"index={place}\b", instruction.rest):
        return 0
    if instruction.operation == "constant":
        return int(_found(r"^(\d+)\)", instruction.rest))
    if instruction.operation in ("add", "copy"):
        return sum(_step(operand, place, body) for operand in _operands(instruction))
    raise ValueError(f"{name}: the counter of a loop comes from a {instruction.operation}")


def _root(computation: dict[str, _Instruction]) -> _Instruction:
    return list(computation.values())[-1]


def _own(instruction: _Instruction, others: dict[str, _Instruction]) -> Work:
    flops = 0.0
    kernels: Counter[str] = Counter()
    collectives: Counter[str] = Counter()
    operation = instruction.operation.removesuffix("-start")
    if instruction.operation == "dot":
        left = _dimensions(_operand_types(instruction, others)[0])
        contracting = _found(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
        shared = [left[int(axis)] for axis in contracting.split(",") if axis]
        flops = 2.0 * math.prod(_dimensions(instruction.result)) * math.prod(shared)
    elif instruction.operation == "convolution":
        flops = _convolution_flops(instruction, others)
    elif instruction.operation == "custom-call":
        kernels[_found(r'custom_call_target="([^"]+)"', instruction.rest)] += 1
    elif operation in _COLLECTIVES:
        # a started one has operands and results in its type: the larger of the two halves is the result
        sizes = [_bytes(kind, dims) for kind, dims in _SHAPE.findall(instruction.result)]
        collectives[operation] += max(sizes) if instruction.operation.endswith("-start") else sum(sizes)
    return Work(flops, kernels, collectives)


def _convolution_flops(instruction: _Instruction, others: dict[str, _Instruction]) -> float:
    """On TPUs matrix products are convolutions, also batched ones, whose windows slide over padding and holes.

    Counted as XLA's cost analysis does: per spatial dimension, the pairs of an output and a kernel position that meet
    an element of the input.
    """
    labels = re.split("_|->", _found(r"dim_labels=(\w+->\w+)", instruction.rest))
    types = _operand_types(instruction, others)
    inputs, kernel, output = (
        dict(zip(letters, _dimensions(type_), strict=True))
        for letters, type_ in zip(labels, (*types, instruction.result), strict=True)
    )
    window = re.search(r"window=\{([^}]*)\}", instruction.rest)
    settings = dict(item.split("=") for item in window[1].split()) if window else {}
    products = output["b"] * output["f"] * kernel["i"]
    for axis in (letter for letter in kernel if letter.isdigit()):
        index = int(axis)

        def setting(name: str, default: str, index: int = index) -> str:
            return settings[name].split("x")[index] if name in settings else default

        stride, dilation = int(setting("stride", "1")), int(setting("rhs_dilate", "1"))
        holes, before = int(setting("lhs_dilate", "1")), int(setting("pad", "0_0").split("_")[0])
        places = np.arange(output[axis])[:, None] * stride + np.arange(kernel[axis])[None] * dilation - before
        inside = (places >= 0) & (places < (inputs[axis] - 1) * holes + 1) & (places % holes == 0)
        products *= int(inside.sum())
    batch_groups = re.search(r"batch_group_count=(\d+)", instruction.rest)
    return 2.0 * products / (int(batch_groups[1]) if batch_groups else 1)


def _operands(instruction: _Instruction) -> list[str]:
    """Names of the operands."""
    depth, end = 1, 0
    for end, character in enumerate(instruction.rest):  # noqa: B007
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            break
    return re.findall(r"%([\w.\-]+)", instruction.rest[:end])


def _operand_types(instruction: _Instruction, others: dict[str, _Instruction]) -> list[str]:
    return [others[name].result for name in _operands(instruction)]


def _found(pattern: str, text: str) -> str:
    """What the group of the pattern matches; raises ValueError if it does not."""
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"no {pattern!r} in {text[:200]!r}")
    return match[1]


def _dimensions(type_: str) -> list[int]:
    return [int(size) for size in _found(r"\w\[([\d,]*)\]", type_).split(",") if size]


def _bytes(kind: str, dims: str) -> int:
    return math.prod(int(size) for size in dims.split(",") if size) * _BITS[kind] // 8


def _sum(parts: list[tuple[int, Work]]) -> Work:
    flops = 0.0
    kernels: Counter[str] = Counter()
    collectives: Counter[str] = Counter()
    for times, work in parts:
        flops += times * work.matmul_flops
        for ours, theirs in ((kernels, work.kernels), (collectives, work.collective_bytes)):
            for name, count in theirs.items():
                ours[name] += times * count
    return Work(flops, kernels, collectives)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_EXHAUSTED = (
    r"Used (?P<used>[\d.]+)(?P<unit>[KMGT]?) of (?P<limit>[\d.]+)(?P<limit_unit>[KMGT]?) hbm",
    r"temporaries \((?P<used>[\d.]+)(?P<unit>[KMGT]?)\) exceeds available HBM "
    r"\((?P<limit>[\d.]+)(?P<limit_unit>[KMGT]?)\)",
)
"""How the compiler says that a program does not fit: with its arguments, or its temporaries alone."""


def exhausted(message: str) -> dict[str, int | None]:
    """What the compiler's message says of a program that does not fit: the bytes that it needs at least, and has."""
    found = next(filter(None, (re.search(pattern, message) for pattern in _EXHAUSTED)), None)
    if found is None:
        return {"total": None}
    used, limit = (int(float(found[n]) * _UNITS[found[u]]) for n, u in (("used", "unit"), ("limit", "limit_unit")))
    return {"total": used, "limit": limit}
