"""Forms that are meant to hurt: deep, huge, exponential, recursive, broken; each by its number.

`python -m quire.fuzz.hostile_forms` compiles all of them as a server would and follows those that
compile for some tokens; it tells the worst time and memory of one. Nothing of it may end this
process, take more than the checker allows, or leave it unable to serve the next one.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..engine.errors import ParamsError
from ..engine.grammar.follower import Follower
from ..engine.grammar.grammars import Grammars, Vocabulary
from ..engine.grammar.source import grammar_source
from ..engine.structured import StructuredOutputsParams
from .schema_suite import byte_vocabulary

NUM_FORMS = 500
NUM_TOKENS = 24
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Maker = Callable[[random.Random], dict[str, Any]]


def _word(rng: random.Random, length: int = 8) -> str:
    return "".join(rng.choices(LETTERS, k=length))


def _words(rng: random.Random, count: int) -> list[str]:
    return [_word(rng) for _ in range(count)]


def _power(rng: random.Random) -> int:
    """A size between 2 and 100,000, small ones as often as large ones."""
    return int(2 * 10 ** rng.uniform(0, 4.7))


def _regex_repeats(rng: random.Random) -> str:
    inner = rng.choice(("a", "[a-z]", r"\p{L}", "(a|aa)", ".", "(ab?){2}", "x*"))
    for _ in range(rng.randint(1, 4)):
        inner = f"({inner}){{{rng.choice(('0,', '1,', ''))}{min(_power(rng), 99999)}}}"
    return inner + rng.choice(("", "b", "$"))


def _regex_backtracks(rng: random.Random) -> str:
    part = rng.choice(("(a+)+", "(a*)*", "(a|a)*", "(.*a)", "(.*)", "([a-z]+)*", "(a|b|ab)*"))
    return part * rng.randint(1, 60) + "b"


def _regex_states(rng: random.Random) -> str:
    return f"(a|b)*a(a|b){{{_power(rng) % 2000}}}" + ".*x.{30}" * rng.randint(0, 3)


def _regex_broken(rng: random.Random) -> str:
    piece = (
        "(",
        "[",
        "*",
        "\\",
        "{1",
        "(?<=a)",
        "\\1",
        "[z-a]",
        "\x00",
        "\ud800",
        "(?P<",
        "/",
        "\n",
    )
    return "".join(rng.choices((*piece, "a", "b"), k=rng.randint(1, 30)))


def _regex_deep(rng: random.Random) -> str:
    depth = _power(rng) % 30000
    return "(" * depth + "a" + ")" * (depth - rng.randint(0, 1))


def _regex_wide(rng: random.Random) -> str:
    return "|".join(_words(rng, _power(rng)))


def _nested(rng: random.Random) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(rng.choice((30, 60, 120, 500))):
        schema = (
            {"type": "array", "items": schema}
            if rng.random() < 0.5
            else {"type": "object", "properties": {"a": schema}, "required": ["a"]}
        )
    return schema


def _deep_text(rng: random.Random) -> str:
    depth = _power(rng)
    return '{"items":' * depth + "{}" + "}" * depth


def _exponential(rng: random.Random) -> Any:
    depth = rng.choice((10, 20, 40, 200, 1000))
    key = rng.choice(("anyOf", "allOf", "oneOf"))
    ref = [{"$ref": f"#/$defs/d{i}"} for i in range(depth + 1)]
    defs: dict[str, Any] = {f"d{i}": {key: [ref[i + 1], ref[i + 1]]} for i in range(depth)}
    return {"$defs": {**defs, f"d{depth}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


def _product(rng: random.Random) -> Any:
    return {
        "allOf": [
            {"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(rng.randint(2, 4))]}
            for i in range(rng.randint(2, 24))
        ]
    }


def _recursive(rng: random.Random) -> Any:
    names = [f"r{i}" for i in range(rng.randint(1, 30))]
    defs = {
        name: rng.choice(
            (
                {"$ref": f"#/$defs/{rng.choice(names)}"},
                {"anyOf": [{"$ref": f"#/$defs/{rng.choice(names)}"}, {"type": "null"}]},
                {"type": "object", "properties": {"x": {"$ref": f"#/$defs/{rng.choice(names)}"}}},
                {"type": "array", "items": {"$ref": f"#/$defs/{rng.choice(names)}"}},
            )
        )
        for name in names
    }
    return {"$defs": defs, "$ref": "#/$defs/r0"}


def _huge_enum(rng: random.Random) -> Any:
    return {"enum": _words(rng, _power(rng))}


def _many_properties(rng: random.Random) -> Any:
    names = _words(rng, _power(rng) % 20000 + 1)
    return {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "required": names if rng.random() < 0.5 else [],
    }


def _numbers(rng: random.Random) -> Any:
    return {
        "type": rng.choice(("integer", "number")),
        "minimum": rng.choice((-(10 ** rng.randint(0, 300)), 0.1, 1e-300)),
        "maximum": rng.choice((10 ** rng.randint(0, 300), 1e308, 3.14159265358979)),
        "multipleOf": rng.choice((1, 7, 0.001, 987654321, 1e-7, 1e9)),
    }


def _counts(rng: random.Random) -> Any:
    most = 10 ** rng.randint(1, 18)
    return rng.choice(
        (
            {"type": "string", "maxLength": most},
            {"type": "string", "minLength": most},
            {"type": "array", "items": {"type": "integer"}, "minItems": most},
            {"type": "object", "minProperties": most},
            {"type": "string", "pattern": _regex_repeats(rng), "maxLength": most},
        )
    )


def _patterns(rng: random.Random) -> Any:
    return {
        "allOf": [{"type": "string", "pattern": f".*{w}.*"} for w in _words(rng, _power(rng) % 99)]
    }


def _lark_rules(rng: random.Random) -> str:
    count = _power(rng) % 20000 + 1
    body = rng.choice(("r{0} r{0}", "r{0} | r{0} r{0}", '"a" r{0}', "r{0}*", "(r{0} r{0})?"))
    rules = [f"r{i}: {body.format(i + 1)}" for i in range(count)]
    return "\n".join(["start: r0", *rules, f'r{count}: "a"'])


def _lark_ambiguous(rng: random.Random) -> str:
    return rng.choice(
        (
            'start: start start | "a" | ""',
            'start: (x*)*\nx: y*\ny: x* | "a"',
            "start: " + " ".join(['"a"?'] * (_power(rng) % 3000)),
            f'start: ("a" | "aa" | "aaa"){{0,{_power(rng)}}}',
            "start: start",
            "start: x\nx: y\ny: x",
            "start: /a/ start | start /b/ | /c/",
            "start: %json " + json.dumps(_recursive(rng)),
            'start: "b" | "a" x x\nx: /a+/',
            "\n" * _power(rng),
            "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(_power(rng) % 20000)),
        )
    )


def _lark_broken(rng: random.Random) -> str:
    words = (
        "start",
        ":",
        "|",
        '"',
        "/",
        "%json",
        "{",
        "}",
        "%import x",
        "\n",
        "->",
        "@a",
        "<[1-9]>",
    )
    return "start: " + " ".join(rng.choices(words, k=rng.randint(1, 20)))


def _form(kind: str, make: Callable[[random.Random], Any]) -> Maker:
    return lambda rng: {kind: make(rng)}


MAKERS: tuple[Maker, ...] = (
    *(
        _form("regex", make)
        for make in (_regex_repeats, _regex_backtracks, _regex_states, _regex_broken, _regex_deep)
    ),
    _form("regex", _regex_wide),
    *(
        _form("json", make)
        for make in (_nested, _deep_text, _exponential, _product, _recursive, _huge_enum, _counts)
    ),
    *(_form("json", make) for make in (_many_properties, _numbers, _patterns)),
    *(_form("grammar", make) for make in (_lark_rules, _lark_ambiguous, _lark_broken)),
    _form("choice", lambda rng: _words(rng, min(_power(rng), 65536))),
)


def make_hostile(number: int) -> StructuredOutputsParams:
    """Return the form of a number. ParamsError where it is refused at once."""
    rng = random.Random(number)
    return StructuredOutputsParams(**MAKERS[number % len(MAKERS)](rng))


class Cost(NamedTuple):
    """What one form took."""

    number: int
    verdict: str
    """"followed", or the beginning of what was said."""
    compile_s: float
    step_s: float
    """The worst of its masks."""
    grown_bytes: int
    """Of this process."""


def try_hostile(grammars: Grammars, number: int) -> Cost:
    """Compile and follow one form; it may be refused, or fail while it is followed."""
    before, start = _peak_bytes(), time.perf_counter()
    compile_s = worst = 0.0
    verdict = "followed"
    try:
        form = make_hostile(number)
        compiled = grammars.compile(grammar_source(form, ()))
        compile_s = time.perf_counter() - start
        follower, rng = Follower(compiled), random.Random(number)
        mask = np.zeros(-(-len(grammars.vocabulary.tokens) // 32), np.uint32)
        for _ in range(NUM_TOKENS):
            step = time.perf_counter()
            follower.fill(mask)
            worst = max(worst, time.perf_counter() - step)
            allowed = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0]
            if follower.fault is not None:
                verdict = "failed: " + follower.fault[:60]
                break
            follower.read([int(allowed[rng.randrange(len(allowed))])])
    except ParamsError as error:
        compile_s = compile_s or time.perf_counter() - start
        verdict = "refused: " + str(error)[20:80]
    return Cost(number, verdict, compile_s, worst, _peak_bytes() - before)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tekken_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary in Mistral's tekken.json."""
    import base64

    data = json.loads(path.read_text())
    size, num_special = (
        data["config"]["default_vocab_size"],
        data["config"]["default_num_special_tokens"],
    )
    tokens = [base64.b64decode(one["token_bytes"]) for one in data["vocab"]][: size - num_special]
    special = {f"<|{i}|>": len(tokens) + i for i in range(num_special)}
    return Vocabulary([*tokens, *(name.encode() for name in special)], special, (len(tokens),))


def main() -> None:
    """Try all forms and tell the worst."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tekken", type=Path, help="a tekken.json, for a large vocabulary")
    parser.add_argument("--count", type=int, default=NUM_FORMS)
    options = parser.parse_args()
    path = options.tekken
    grammars = Grammars(byte_vocabulary if path is None else lambda: tekken_vocabulary(path))
    grammars.compile("start: /a/")
    costs = [try_hostile(grammars, number) for number in range(options.count)]
    print(Counter(cost.verdict.partition(":")[0] for cost in costs))
    for name in ("compile_s", "step_s", "grown_bytes"):
        worst = sorted(costs, key=lambda cost: -getattr(cost, name))[:4]
        print(name, *(f"\n  {cost}" for cost in worst))
    grammars.close()


if __name__ == "__main__":
    main()
