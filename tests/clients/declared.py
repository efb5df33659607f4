"""What an official client declares its answers to be, read from its .d.ts file, and where an answer differs.

Just enough TypeScript for types of data: objects, unions, literals, arrays and names. A type is looked up when it is
needed, so the rest of a file may hold anything.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
TOKEN = re.compile(r"\"[^\"]*\"|'[^']*'|[A-Za-z_$][\w$]*|\d+|[^\s\w]")
PRIMITIVES: dict[str, tuple[type, ...]] = {"string": (str,), "number": (int, float), "boolean": (bool,)}
ANYTHING = ("unknown", "any", "JSONValue")


@dataclass(frozen=True, slots=True)
class Name:
    name: str
    arguments: tuple["Type", ...] = ()


@dataclass(frozen=True, slots=True)
class Literal:
    value: str | int


@dataclass(frozen=True, slots=True)
class Union:
    choices: tuple["Type", ...]


@dataclass(frozen=True, slots=True)
class Array:
    of: "Type"


@dataclass(frozen=True, slots=True)
class Object:
    members: dict[str, tuple[bool, "Type"]]  # name -> whether it has to be there, what it is


Type = Name | Literal | Union | Array | Object


@dataclass(slots=True)
class Parser:
    tokens: list[str]
    at: int = 0

    def take(self, expected: str | None = None) -> str:
        token = self.tokens[self.at]
        if expected is not None and token != expected:
            raise ValueError(f"expected {expected}, found {' '.join(self.tokens[self.at : self.at + 8])}")
        self.at += 1
        return token

    def has(self, token: str) -> bool:
        if self.tokens[self.at] != token:
            return False
        self.at += 1
        return True

    def type(self) -> Type:
        self.has("|")
        choices = [self.item()]
        while self.has("|"):
            choices.append(self.item())
        return choices[0] if len(choices) == 1 else Union(tuple(choices))

    def item(self) -> Type:
        found = self.single()
        while self.tokens[self.at : self.at + 2] == ["[", "]"]:
            self.at += 2
            found = Array(found)
        return found

    def single(self) -> Type:
        if self.has("("):
            inner = self.type()
            self.take(")")
            return inner
        if self.has("{"):
            return self.object()
        token = self.take()
        if token[0] in "\"'":
            return Literal(token[1:-1])
        if token.isdigit():
            return Literal(int(token))
        arguments: list[Type] = []
        if self.has("<"):
            arguments.append(self.type())
            while self.has(","):
                arguments.append(self.type())
            self.take(">")
        return Array(arguments[0]) if token == "Array" else Name(token, tuple(arguments))

    def object(self) -> Object:
        members: dict[str, tuple[bool, Type]] = {}
        while not self.has("}"):
            if self.tokens[self.at] == "readonly" and self.tokens[self.at + 1] not in ("?", ":"):
                self.at += 1
            name = self.take().strip("\"'")
            needed = not self.has("?")
            self.take(":")
            members[name] = (needed, self.type())
            if self.tokens[self.at] in (";", ","):
                self.at += 1
        return Object(members)


@dataclass(slots=True)
class Declarations:
    text: str
    _known: dict[str, Type] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Declarations":
        return cls(COMMENT.sub(" ", path.read_text(encoding="utf-8")))

    def find(self, name: str) -> Type:
        if name not in self._known:
            match = re.search(rf"\btype {re.escape(name)} = ", self.text)
            if match is None:
                raise ValueError(f"the client declares no type {name}")
            end = re.search(r"\n(export |declare |type |//#|$)", self.text[match.end() :])
            body = self.text[match.end() :][: end.start() if end else None]
            self._known[name] = Parser([*TOKEN.findall(body), ";", ";"]).type()
        return self._known[name]

    def literals(self, name: str, member: str) -> set[str | int]:
        """The words that a member of an object type can be."""
        kind = self.find(name)
        assert isinstance(kind, Object)
        inner = kind.members[member][1]
        assert isinstance(inner, Union)
        return {choice.value for choice in inner.choices if isinstance(choice, Literal)}

    def differences(self, value: Any, name: str) -> set[str]:
        """Where the value is not what the type says, one line each; more than it says is no difference."""
        return set(self._differ(value, self.find(name), name))

    def _differ(self, value: Any, kind: Type, path: str) -> Iterator[str]:
        match kind:
            case Name(name, arguments):
                yield from self._differ_named(value, name, arguments, path)
            case Literal(wanted):
                if value != wanted:
                    yield f"{path}: {value!r} is not {wanted!r}"
            case Array(of):
                if not isinstance(value, list):
                    yield f"{path}: {value!r} is no array"
                else:
                    for element in value:
                        yield from self._differ(element, of, f"{path}[]")
            case Union(choices):
                found = [list(self._differ(value, choice, path)) for choice in choices]
                if all(found):
                    deepest = max(found, key=lambda lines: max(line.partition(":")[0].count(".") for line in lines))
                    objects = [c for c in choices if isinstance(c, Object | Array)]
                    yield from (
                        deepest if objects and value is not None else [f"{path}: {value!r} is none of the choices"]
                    )
            case Object(members):
                if not isinstance(value, dict):
                    yield f"{path}: {value!r} is no object"
                    return
                for name, (needed, inner) in members.items():
                    if name in value:
                        yield from self._differ(value[name], inner, f"{path}.{name}")
                    elif needed:
                        yield f"{path}.{name}: missing"

    def _differ_named(self, value: Any, name: str, arguments: tuple[Type, ...], path: str) -> Iterator[str]:
        if name in ANYTHING:
            return
        if name == "null":
            if value is not None:
                yield f"{path}: {value!r} is not null"
        elif name in PRIMITIVES:
            if not isinstance(value, PRIMITIVES[name]) or (name == "number" and isinstance(value, bool)):
                yield f"{path}: {value!r} is no {name}"
        elif name == "Record":
            if not isinstance(value, dict):
                yield f"{path}: {value!r} is no object"
            else:
                for inner in value.values():
                    yield from self._differ(inner, arguments[1], f"{path}.*")
        else:
            yield from self._differ(value, self.find(name), path)
