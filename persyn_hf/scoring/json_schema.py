"""The verifier `json-schema`: the answer as JSON, validated against the schema that the prompt asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from persyn_hf.errors import ScoringError
from persyn_hf.packages import require
from persyn_hf.scoring.thoughts import require_answer, without_thoughts

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

#: A whole answer in a code fence.
_FENCE = re.compile(r"```[A-Za-z]*\s*\n(.*?)\n?\s*```", re.S)


def json_schema_verifier(prompt: object, completion: str, answer: object) -> float:
    """1 if the completion is JSON that is valid under the schema, else 0.

    Args:
        prompt (`object`): Unused.
        completion (`str`): The answer. Thoughts and a code fence around it are removed; NaN and Infinity are not JSON.
        answer (`str` or `Mapping`): The schema, or a `response_format` that holds it.

    Raises:
        ScoringError: If the reference is not a JSON schema.
        MissingExtraError: If jsonschema is not installed.

    Example:
        >>> json_schema_verifier("", '{"age": 7}', '{"type": "object", "required": ["age"]}')
        1.0
    """
    validator = _validator(require_answer(answer))
    text = without_thoughts(completion).strip()
    fenced = _FENCE.fullmatch(text)
    try:
        found = json.loads(text if fenced is None else fenced[1], parse_constant=_no_json)
        return float(validator.is_valid(found))
    except (ValueError, RecursionError):
        return 0.0
    except Exception as error:
        raise ScoringError(f"The JSON schema cannot be applied: {type(error).__name__}: {error!s:.200}.") from error


def schema_of_row(answer: Any, form: Any, body: Any = None) -> Any:
    """The schema of one row: its reference, or else what its answer was asked for in.

    Args:
        answer (`Any`): Its reference.
        form (`Any`): The prompt's `response_format`.
        body (`str` or `Mapping`, *optional*): The teacher's `extra_body`, which may hold a schema for all prompts.

    Example:
        >>> schema_of_row(None, None, '{"response_format": {"type": "json_object"}, "top_k": 5}')
        {'type': 'json_object'}
    """
    return next((one for one in (answer, form) if one is not None), schema_of_body(body))


def schema_of_body(body: Any) -> Any:
    """The schema that a request's further keys hold: `response_format`, vLLM's `structured_outputs` and
    `guided_json`, or the `grammar` of Text Generation Inference; `None` where there is none."""
    try:
        keys = json.loads(body) if isinstance(body, str) else body
    except (ValueError, RecursionError) as error:
        raise ScoringError(f"`extra_body` must be JSON, got {body!r:.80} ({error}).") from error
    if not isinstance(keys, Mapping):
        return None
    form, outputs, grammar = (keys.get(name) for name in ("response_format", "structured_outputs", "grammar"))
    if isinstance(form, Mapping) and form.get("type") in ("json_object", "json_schema"):
        return form
    if isinstance(outputs, Mapping) and (outputs.get("json") is not None or outputs.get("json_object")):
        return outputs.get("json") or {"type": "json_object"}
    if isinstance(grammar, Mapping) and grammar.get("type") == "json":
        return grammar.get("value")
    return keys.get("guided_json")


def _validator(answer: object) -> Validator:
    """A validator for the schema; remote references are never fetched.

    Raises:
        ScoringError: If the schema is not valid.
    """
    require("check answers against a JSON schema", "jsonschema")
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    schema = _schema(answer)
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except (SchemaError, RecursionError) as error:
        said = error.message if isinstance(error, SchemaError) else "it is nested too deeply"
        raise ScoringError(f"The reference is not a valid JSON schema: {said:.200}.") from error
    return kind(schema, registry=Registry())


def _schema(answer: object) -> Any:
    """The schema, extracted from a `response_format` if the reference is one."""
    try:
        found = json.loads(answer, parse_constant=_no_json) if isinstance(answer, str) else answer
    except (ValueError, RecursionError) as error:
        raise ScoringError(f"The reference must be a JSON schema, got {answer!r:.80} ({error}).") from error
    if isinstance(found, Mapping) and found.get("type") == "json_object":
        return {"type": "object"}
    if isinstance(found, Mapping) and found.get("type") == "json_schema":
        wrapped = found.get("json_schema")
        found = wrapped.get("schema") if isinstance(wrapped, Mapping) else None
    if not isinstance(found, Mapping | bool):
        raise ScoringError(f"The reference must be a JSON schema, an object, got {answer!r:.80}.")
    return _without_nulls(found)


def _without_nulls(value: Any) -> Any:
    """The schema without the null keys that Arrow adds; values that the schema lists are kept as they are."""
    if isinstance(value, Mapping):
        return {
            key: part if key in ("const", "enum", "default", "examples") else _without_nulls(part)
            for key, part in value.items()
            if part is not None or key == "const"
        }
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _no_json(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
