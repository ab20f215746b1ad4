"""Tasks that a program can check, and three ways to answer them: terse, with a scratchpad, long-winded.

A prompt is one line, `add 347 285`; the answer is what stands after the last `=` of a completion, or all of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from persyn_hf import verifier

LETTERS = "abcdefghij"
STYLES = ("terse", "scratch", "long")


@verifier
def right(prompt, completion: str, answer: str) -> float:
    """The verifier: 1 where the completion ends with the answer, else 0."""
    return float(completion.rsplit("=", 1)[-1].strip() == answer)


def ask(task: str, draw: random.Random, easy: bool = False) -> str:
    """Draws a prompt of a task; easy ones are those that a student has seen before it meets a teacher."""
    if task == "add":
        low, high = (1, 99) if easy else (100, 999)
        return f"add {draw.randint(low, high)} {draw.randint(low, high)}"
    if task == "max":
        low, high = (1, 99) if easy else (100, 999)
        return "max " + " ".join(str(draw.randint(low, high)) for _ in range(2 if easy else 3))
    if task == "sort":
        return "sort " + " ".join(str(draw.randint(0, 9)) for _ in range(3 if easy else 5))
    if task == "reverse":
        return "reverse " + "".join(draw.choice(LETTERS) for _ in range(3 if easy else 6))
    if task == "count":
        return f"count {draw.choice('abc')} in " + "".join(draw.choice("abc") for _ in range(4 if easy else 7))
    return "parity " + "".join(draw.choice("01") for _ in range(3 if easy else 10))


def solve(prompt: str, style: str) -> str:
    """Answers a prompt rightly, in a style."""
    task, *rest = prompt.split()
    return _SOLVE[task](rest, style)


def _add(rest: list[str], style: str) -> str:
    one, other = (int(number) for number in rest)
    total = str(one + other)
    steps, carry = [], 0
    for place in range(max(len(rest[0]), len(rest[1]))):
        first, second = (number // 10**place % 10 for number in (one, other))
        here = first + second + carry
        steps.append((first, second, carry, here))
        carry = here // 10
    if style == "terse":
        return total
    if style == "scratch":
        return " ".join(f"{a}+{b}+{c}:{here}" for a, b, c, here in steps) + f" ={total}"
    words = ", then ".join(f"{a}+{b}+{c} makes {here}" for a, b, c, here in steps)
    return f"first {words}, so ={total}"


def _max(rest: list[str], style: str) -> str:
    best = max(rest, key=int)
    if style == "terse":
        return best
    running = [max(rest[: place + 1], key=int) for place in range(len(rest))]
    if style == "scratch":
        return " ".join(running) + f" ={best}"
    words = ", ".join(f"{number} keeps {held}" for number, held in zip(rest, running, strict=True))
    return f"first {words}, so ={best}"


def _sort(rest: list[str], style: str) -> str:
    ordered = " ".join(sorted(rest))
    if style == "terse":
        return ordered
    left, steps = list(rest), []
    while left:
        left.remove(min(left))
        steps.append("".join(left) or ".")
    if style == "scratch":
        return " ".join(steps) + f" ={ordered}"
    words = ", ".join(f"{digit} leaves {step}" for digit, step in zip(sorted(rest), steps, strict=True))
    return f"first {words}, so ={ordered}"


def _reverse(rest: list[str], style: str) -> str:
    word = rest[0]
    if style == "terse":
        return word[::-1]
    if style == "scratch":
        numbered = "".join(f"{place}{letter}" for place, letter in enumerate(word))
        return f"{numbered} ={word[::-1]}"
    words = ", ".join(f"{place} is {letter}" for place, letter in reversed(list(enumerate(word))))
    return f"first {words}, so ={word[::-1]}"


def _count(rest: list[str], style: str) -> str:
    letter, word = rest[0], rest[2]
    total = str(word.count(letter))
    if style == "terse":
        return total
    running = [word[: place + 1].count(letter) for place in range(len(word))]
    if style == "scratch":
        return "".join(f"{seen}{number}" for seen, number in zip(word, running, strict=True)) + f" ={total}"
    words = ", ".join(f"{seen} so {number}" for seen, number in zip(word, running, strict=True))
    return f"first {words}, so ={total}"


def _parity(rest: list[str], style: str) -> str:
    bits = rest[0]
    name = "odd" if bits.count("1") % 2 else "even"
    if style == "terse":
        return name
    running = ["o" if bits[: place + 1].count("1") % 2 else "e" for place in range(len(bits))]
    if style == "scratch":
        return "".join(f"{bit}{state}" for bit, state in zip(bits, running, strict=True)) + f" ={name}"
    words = ", ".join(f"{bit} so {state}" for bit, state in zip(bits, running, strict=True))
    return f"first {words}, so ={name}"


_SOLVE: dict[str, Callable[[list[str], str], str]] = {
    "add": _add, "max": _max, "sort": _sort, "reverse": _reverse, "count": _count, "parity": _parity,
}  # fmt: skip
TASKS = tuple(_SOLVE)
