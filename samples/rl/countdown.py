"""Countdown with three numbers: an equation over all of them that gives the target. Rows of prompts, and the judge.

    python samples/rl/countdown.py rows 500 > countdown.jsonl
    cm3kit train rl … --reward-command "python samples/rl/countdown.py judge"

An answer is worth 1 if it is right, 0.3 if it uses the right numbers, 0.1 if it is an expression at all, else 0.
"""

from __future__ import annotations

import ast
import json
import operator
import random
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction

MOST = 200  # letters of an expression
SIGNS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip


def value(node: ast.expr, used: list[int]) -> Fraction:
    """What an expression of whole numbers and four signs comes to; ValueError for any other, and what it uses."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
        return SIGNS[type(node.op)](value(node.left, used), value(node.right, used))
    raise ValueError("no expression of numbers and signs")


def worth(text: str, numbers: list[int], target: int) -> float:
    """What an answer is worth. It is parsed, and never run."""
    used: list[int] = []
    try:
        found = value(ast.parse(text.strip().split("=")[0].strip()[:MOST], mode="eval").body, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return 0.0
    if sorted(used) != sorted(numbers):
        return 0.1
    return 1.0 if found == target else 0.3


def rows(count: int, seed: int = 0, most: int = 9) -> Iterator[dict[str, object]]:
    """Numbers from 1 to `most`, and a target that can be reached by two of + - *."""
    rng = random.Random(seed)
    for _ in range(count):
        numbers = [rng.randint(1, most) for _ in range(3)]
        first, second = (rng.choice([operator.add, operator.sub, operator.mul]) for _ in range(2))
        a, b, c = rng.sample(numbers, 3)
        target = int(second(first(a, b), c))
        yield {"prompt": f"{' '.join(map(str, numbers))} = {target}", "numbers": numbers, "target": target}


def main() -> None:
    """Print rows, or judge answers line by line."""
    if sys.argv[1:2] == ["rows"]:
        for row in rows(int(sys.argv[2])):
            print(json.dumps(row))
    elif sys.argv[1:] == ["judge"]:
        for line in sys.stdin:
            asked = json.loads(line)
            told = asked["meta"]
            print(worth(" ".join(asked["texts"]), told["numbers"], told["target"]), flush=True)
    else:
        sys.exit("say: rows COUNT, or judge")


if __name__ == "__main__":
    main()
