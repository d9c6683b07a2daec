"""JSON Schemas as grammars: what is generated is valid, and what is not valid is not accepted.

`python -m quire.fuzz.schema_suite FOLDER` runs files in the form of the JSON Schema Test Suite
(lists of {"schema", "tests": [{"data", "valid"}]}) and tells what each keyword's cases gave.
`jsonschema` is the oracle. A schema that cannot be followed has to be refused.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import numpy as np
from jsonschema.validators import validator_for

from ..engine.errors import ParamsError
from ..engine.grammar.follower import Follower
from ..engine.grammar.grammars import Compiled, Grammars, Vocabulary
from ..engine.grammar.source import grammar_source
from ..engine.structured import StructuredOutputsParams

END = 256
NUM_OUTPUTS = 6
MOST_TOKENS = 400
_CLOSERS = frozenset(b'"}],:0123456789eE.-truefalsn')
"""Bytes that bring an output to its end."""
_LONGER = ('{"', '":', '": ', '", "', '"}', "}]", "true", "false", "null", "foo", "bar", "12")


def byte_vocabulary(special: Sequence[str] = ()) -> Vocabulary:
    """Every byte is a token, then the end and other special ones, then some that are longer."""
    named = {text: END + index for index, text in enumerate(("<|end|>", *special))}
    tokens = [bytes((byte,)) for byte in range(256)]
    return Vocabulary([*tokens, *(text.encode() for text in (*named, *_LONGER))], named, (END,))


class Tried(NamedTuple):
    """What one schema gave."""

    refused: str | None
    """Why it cannot be followed."""
    num_valid: int = 0
    """Outputs that ended; all were valid."""
    num_cut: int = 0
    """Outputs that did not end in MOST_TOKENS."""
    wrong: tuple[str, ...] = ()
    """Outputs that are not valid, and instances that are accepted and must not be."""
    num_accepted: int = 0
    """Valid instances that the grammar accepts: keys in the schema's order, known formats only."""
    num_instances: int = 0
    """Valid instances."""


def closes(token: bytes) -> bool:
    """Tell whether a token brings JSON to its end."""
    return all(byte in _CLOSERS for byte in token)


def generate(
    compiled: Compiled,
    vocabulary: Vocabulary,
    rng: random.Random,
    *,
    likes: Callable[[bytes], bool] = closes,
    liking: float = 0.75,
) -> bytes | None:
    """Draw an output, the end and some tokens more often; None if it does not end.

    liking: how often one of those comes, where one may.
    """
    follower, out = Follower(compiled), list[bytes]()
    mask = np.zeros(-(-len(vocabulary.tokens) // 32), np.uint32)
    for _ in range(MOST_TOKENS):
        follower.fill(mask)
        assert follower.fault is None, follower.fault
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(vocabulary.tokens)]
        allowed = [int(token) for token in bits.nonzero()[0]]
        assert allowed, "nothing may come next"
        liked = [t for t in allowed if t == END or likes(vocabulary.tokens[t])]
        token = rng.choice(liked if liked and rng.random() < liking else allowed)
        if token == END:
            return b"".join(out)
        out.append(vocabulary.tokens[token])
        follower.read([token])
    return None


def accepts(compiled: Compiled, text: str | bytes) -> bool:
    """Tell whether a grammar takes a whole text, byte by byte."""
    matcher = compiled.start()
    data = list(text.encode() if isinstance(text, str) else text)
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())


def outputs_of(
    grammars: Grammars,
    form: StructuredOutputsParams,
    *,
    count: int = NUM_OUTPUTS,
    likes: Callable[[bytes], bool] = closes,
) -> list[bytes]:
    """Compile a form and draw outputs of it; those that end."""
    vocabulary = grammars.vocabulary
    compiled = grammars.compile(grammar_source(form, vocabulary.special))
    drawn = [
        generate(compiled, vocabulary, random.Random(seed), likes=likes) for seed in range(count)
    ]
    return [output for output in drawn if output is not None]


def try_schema(
    grammars: Grammars, schema: Any, tests: Sequence[Any] = (), *, seed: int = 0
) -> Tried:
    """Generate from a schema and offer it instances, tests: [{"data", "valid"}]."""
    try:
        source = grammar_source(StructuredOutputsParams(json=schema))
        compiled = grammars.compile(source)
    except ParamsError as error:
        return Tried(str(error))
    kind = validator_for(schema, jsonschema.Draft202012Validator)
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
    rng, wrong = random.Random(seed), []
    outputs = [generate(compiled, grammars.vocabulary, rng) for _ in range(NUM_OUTPUTS)]
    whole = [output for output in outputs if output is not None]
    for output in whole:
        try:
            is_valid = validator.is_valid(json.loads(output))
        except ValueError:
            is_valid = False
        if not is_valid:
            wrong.append(f"generated {output.decode(errors='replace')}")
    num_accepted = num_instances = 0
    for test in tests:
        accepted = accepts(compiled, json.dumps(test["data"], ensure_ascii=False))
        if test["valid"]:
            num_accepted, num_instances = num_accepted + accepted, num_instances + 1
        elif accepted and not validator.is_valid(test["data"]):
            wrong.append(f"accepted {json.dumps(test['data'])}")
    return Tried(
        None, len(whole), len(outputs) - len(whole), tuple(wrong), num_accepted, num_instances
    )


def read_suite(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (keyword, case) of all files."""
    for path in sorted(folder.glob("**/*.json")):
        for case in json.loads(path.read_text()):
            yield path.stem, case


def main() -> None:
    """Run a suite; fail where an output is not valid or an invalid instance is accepted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draft", default="http://json-schema.org/draft-04/schema#")
    options = parser.parse_args()
    grammars = Grammars(byte_vocabulary)
    totals: dict[str, Counter[str]] = {}
    num_wrong = 0
    for index, (keyword, case) in enumerate(read_suite(options.folder)):
        schema, total = case["schema"], totals.setdefault(keyword, Counter())
        if isinstance(schema, dict):
            schema = {"$schema": options.draft, **schema}
        tried = try_schema(grammars, schema, case["tests"], seed=index)
        total["cases"] += 1
        if tried.refused is not None:
            total["refused"] += 1
            print(f"{keyword}: {case['description']}: {tried.refused[:150]}")
            continue
        total["valid outputs"] += tried.num_valid - sum("generated" in w for w in tried.wrong)
        total["cut off"] += tried.num_cut
        total["accepted"] += tried.num_accepted
        total["instances"] += tried.num_instances
        for what in tried.wrong:
            num_wrong += 1
            print(f"WRONG {keyword}: {case['description']}: {json.dumps(schema)}: {what}")
    for keyword, total in totals.items():
        print(f"{keyword:24s} " + ", ".join(f"{name} {total[name]}" for name in total))
    every = sum(totals.values(), Counter())
    print("all", dict(every), "wrong", num_wrong)
    grammars.close()
    sys.exit(1 if num_wrong else 0)


if __name__ == "__main__":
    main()
