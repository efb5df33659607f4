"""What pydantic found wrong, in words of ours: the place in the file, what is wrong, the way out. Never the value.

A value is looked at here for two things only: a number is no secret, and a word near a known one is answered with the
known one.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import PydanticCustomError

_URL = "must be a URL such as https://example.com"
_MEANT = {
    "missing": "missing",
    "string_type": "must be text; write a number in quotes",
    "string_too_short": "must not be empty",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a section of keys and values",
    "model_type": "must be a section of keys and values",
    "model_attributes_type": "must be a section of keys and values",
    "too_short": "must not be empty",
}
#: With the limit that was passed over.
_LIMITS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def found(problems: list[str]) -> PydanticCustomError:
    """What a validator raises that has its lines already, each with its place; what else is wrong stands beside."""
    return PydanticCustomError("problems", "several problems", {"problems": problems})


def found_below(problems: list[str]) -> PydanticCustomError:
    """What a validator raises whose lines begin with the rest of their place: ``.key: …``, or ``: …`` for its own."""
    return PydanticCustomError("below", "several problems", {"problems": problems})


def lines(exc: ValidationError, prefix: str, model: type[BaseModel]) -> list[str]:
    """One line a problem; ``prefix`` is where in the file ``model`` stands."""
    out: list[str] = []
    for error in exc.errors(include_url=False):
        loc, kind = tuple(error["loc"]), error["type"]
        if kind == "problems":
            out += error["ctx"]["problems"]
            continue
        place, section = _place(loc, prefix, model)
        if kind == "below":
            out += [f"{place}{line}" for line in error["ctx"]["problems"]]
            continue
        if kind == "extra_forbidden":
            words = _unknown_key(str(loc[-1]), section)
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            tag = str(error["ctx"]["discriminator"]).strip("'")
            place = f"{place}.{tag}" if place else tag
            given = error["input"].get(tag) if isinstance(error["input"], dict) else None
            words = _choice(_tags(loc, model), given, missing=kind == "union_tag_not_found")
        else:
            words = _words(error)
        line = f"{place}: {words}" if place else words
        if line not in out:
            out.append(line)
    return out


def _words(error: Any) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if value is None and kind not in ("missing", "value_error"):
        return "nothing is written there"
    if kind == "value_error":
        return str(error["msg"]).removeprefix("Value error, ")
    if kind == "string_pattern_mismatch":
        if "trace_id" in context["pattern"]:
            return "must be a URL with {trace_id} in it"
        if r"\d" in context["pattern"]:
            return "must be a number"
        return _URL if "https?" in context["pattern"] else "has a character that may not stand there"
    if kind in ("list_type", "tuple_type"):
        if isinstance(value, int) and not isinstance(value, bool):
            return f"must be a list: write [{value}]"
        return "must be a list: one entry a line, each after a dash"
    if kind in _LIMITS:
        return _limit(*_LIMITS[kind], context, value)
    if kind in ("literal_error", "enum"):
        return _choice(re.findall(r"'([^']*)'", context["expected"]), value)
    if kind in ("string_too_long", "too_long"):
        return f"is too long: at most {context['max_length']}"
    return _MEANT.get(kind) or str(error["msg"])


def _limit(words: str, name: str, context: dict[str, Any], value: Any) -> str:
    limit = context[name]
    line = f"must be {words} {limit:g}"
    if limit != 1 or name in ("gt", "ge"):
        return line
    share = value if isinstance(value, int | float) and 1 < value < 100 else 99
    return f"{line}: a share, for example {share / 100:g} for {share:g} %"


def _choice(known: Iterable[str], given: Any, *, missing: bool = False) -> str:
    known = list(known)
    near = did_you_mean(given, known) if isinstance(given, str) else None
    hint = f"; did you mean {near}?" if near else ""
    return f"{'missing; one' if missing else 'must be one'} of {', '.join(known)}{hint}"


def _unknown_key(key: str, section: type[BaseModel] | None) -> str:
    near = did_you_mean(key, [] if section is None else list(_keys(section)))
    below = [] if section is None else [f"{name}.{key}" for name, part in _parts(section) if key in part.model_fields]
    guess = f"{below[0]}" if below and (near is None or near != key) else near
    return "unknown key" if guess is None else f"unknown key; did you mean {guess}?"


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word that is near this one."""
    return next(iter(get_close_matches(word, list(known), 1, 0.7)), None)


def _keys(section: type[BaseModel]) -> Iterable[str]:
    for name, info in section.model_fields.items():
        yield name
        if _is_secret(info.annotation):
            yield f"{name}_file"


def _parts(section: type[BaseModel]) -> Iterable[tuple[str, type[BaseModel]]]:
    for name, info in section.model_fields.items():
        for part in models(info.annotation):
            if get_origin(info.annotation) not in (dict, list):
                yield name, part


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or any(_is_secret(part) for part in get_args(annotation))


def models(annotation: Any) -> list[type[BaseModel]]:
    """The sections an annotation may hold, directly or in a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models(part)]


def _place(loc: tuple[Any, ...], prefix: str, model: type[BaseModel]) -> tuple[str, type[BaseModel] | None]:
    """The place in the file, without pydantic's names for the branches of a union; and the section it is in."""
    here: Any = model
    place, section = prefix, None
    for part in loc:
        here, section = bare(here), None
        if isinstance(part, int):
            place, here = f"{place}[{part}]", _item(here)
        elif isinstance(here, type) and issubclass(here, BaseModel):
            section = here
            info = here.model_fields.get(str(part))
            place = f"{place}.{part}" if place else str(part)
            here = Any if info is None else info.annotation
        elif get_origin(here) is dict:
            if part != "[key]":
                place, here = f"{place}.{part}" if place else str(part), get_args(here)[1]
        elif get_origin(here) in (Union, UnionType):
            here = next((one for one in models(here) if part in _tag_of(one)), here)
    return place, section


def _tags(loc: tuple[Any, ...], model: type[BaseModel]) -> list[str]:
    here: Any = model
    for part in loc:
        here = bare(here)
        if isinstance(part, int) or get_origin(here) is dict:
            here = _item(here)
        else:
            here = here.model_fields[str(part)].annotation
    return [tag for one in models(here) for tag in _tag_of(one)]


def _tag_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The words a section of a union is known by."""
    for info in model.model_fields.values():
        if get_origin(info.annotation) is Literal:
            return get_args(info.annotation)
    return ()


def bare(annotation: Any) -> Any:
    """What an annotation is about, without ``Annotated`` and ``| None``."""
    if get_origin(annotation) is Annotated:
        return bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        left = [part for part in get_args(annotation) if part is not NoneType]
        return bare(left[0]) if len(left) == 1 else annotation
    return annotation


def _item(annotation: Any) -> Any:
    arguments = [part for part in get_args(annotation) if part is not ...]
    return arguments[-1] if arguments else Any
