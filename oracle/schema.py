"""The JSON Schema of programs, and what is wrong with a document: one line that names the field."""
import functools
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jsonschema
from jsonschema.exceptions import best_match


class ProgramError(ValueError):
    """A program, or a part of one, that can't be: one line, `file:line: field: what is wrong`."""

    def __init__(self, field: str, what: str, where: str = "") -> None:
        super().__init__(": ".join(part for part in (where, field, what) if part))
        self.field, self.what, self.where = field, what, where

    def at(self, where: str) -> "ProgramError":
        """The same error, with its file and line."""
        return ProgramError(self.field, self.what, where)

    def under(self, field: str) -> "ProgramError":
        """The same error, seen from the document that has the faulty one as its `field`."""
        inner = self.field if not self.field or self.field.startswith("[") else f".{self.field}"
        return ProgramError((field + inner).removeprefix("."), self.what, self.where)


# --- JSON --------------------------------------------------------------------------------------------------------------------

def parse_json(text: str | bytes) -> Any:
    """One JSON document; ProgramError, with the line if it is known, if it is none, is truncated, or says a thing twice."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except json.JSONDecodeError as e:
        raise ProgramError("", f"not JSON, or truncated (column {e.colno}: {e.msg})", str(e.lineno)) from None
    except RecursionError:
        raise ProgramError("", "nested too deep") from None
    except ProgramError:
        raise
    except ValueError as e:                 # no UTF-8, or an integer of thousands of digits
        raise ProgramError("", f"not JSON: {e}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    doc = dict(pairs)
    if len(doc) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ProgramError(next(key for key in keys if keys.count(key) > 1), "is there twice")
    return doc


def _no_constant(name: str) -> None:
    raise ProgramError("", f"not JSON: {name}")


def short(value: Any) -> str:
    """A JSON value as an error message quotes it."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 40 else text[:37] + "..."


# --- the schema --------------------------------------------------------------------------------------------------------------

@functools.cache
def schema() -> dict[str, Any]:
    """Of a line of a program, and of what an external target reads and answers."""
    text = resources.files("oracle").joinpath("program.schema.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


@functools.cache
def validator(part: str) -> jsonschema.Draft202012Validator:
    """Of one of the schema's `$defs`."""
    whole = schema()
    return jsonschema.Draft202012Validator({"$schema": whole["$schema"], "$ref": f"#/$defs/{part}", "$defs": whole["$defs"]})


def validate(part: str, doc: Any) -> None:
    """ProgramError unless `doc` is what the schema's `part` says."""
    wrong = best_match(validator(part).iter_errors(doc))
    if wrong is not None:
        raise _in_words(wrong)


class Explained:
    """Inside this context the decoder's refusal of `doc` becomes what the schema has against it.

    A range of the profile, or a domain that isn't there, is beyond the schema: then the decoder's own words stand.
    """

    def __init__(self, part: str, doc: Any) -> None:
        self.part, self.doc = part, doc

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValueError | TypeError | KeyError):
            validate(self.part, self.doc)
            if not isinstance(error, ProgramError):
                raise ProgramError("", f"can't be read: {error}") from error


def _in_words(error: jsonschema.ValidationError) -> ProgramError:
    """The schema's complaint, with the field it is about."""
    path, value, limit = [*error.absolute_path], error.instance, error.validator_value
    match error.validator:
        case "required" if isinstance(limit, list) and isinstance(value, dict):
            return ProgramError(_field([*path, next(k for k in limit if k not in value)]), "missing")
        case "additionalProperties" if isinstance(error.schema, dict) and isinstance(value, dict):
            known = error.schema.get("properties", {})
            extra = next(k for k in value if k not in known)
            return ProgramError(_field([*path, extra]), f"unknown field (known: {', '.join(known)})")
        case "pattern":
            what = f'{short(value)} is not a number: an integer, or "0x" and 1 to 16 hexadecimal digits'
        case "minimum" | "maximum":
            what = f"{short(value)} is out of range ({error.validator} {limit})"
        case "type":
            what = f"{short(value)} is not of type {' or '.join(limit) if isinstance(limit, list) else limit}"
        case "const":
            what = f"{short(value)} must be {short(limit)}"
        case "minItems" | "maxItems":
            what = f"too {'few' if error.validator == 'minItems' else 'many'} elements ({error.validator} {limit})"
        case _:
            what = error.message[:160]
    return ProgramError(_field(path), what)


def _field(path: Sequence[str | int]) -> str:
    """['args', 2] as args[2]."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).removeprefix(".")
