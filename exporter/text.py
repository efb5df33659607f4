"""A config file as text: YAML to plain values, ``${VAR}`` and ``*_file`` filled in.

No message quotes what is written at a place: it may be a secret, also where none belongs.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

#: Keys that end in _file and mean a file, not a secret read from one.
FILE_KEYS = frozenset({"cert_file", "key_file", "tls_ca_file"})
#: What stands for a file that could not be read, so that the rest can be checked all the same.
_UNREAD = "unreadable"
NESTED = "the config is nested too deeply, or contains itself"
_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})")
#: What the parser says (its beginning), and what a person reads instead. The rest stays, without what it quotes.
_YAML_WORDS = {
    "found character '\\t'": "a tab: indent with spaces",
    "found a tab character": "a tab: indent with spaces",
    "could not determine a constructor for the tag": "a value begins with an exclamation mark: write it in quotes",
    "found undefined alias": "a value begins with an asterisk: write it in quotes",
    "found duplicate anchor": "a value begins with an ampersand: write it in quotes",
    "found character '@'": "a value begins with an at sign: write it in quotes",
    "found character '`'": "a value begins with a backtick: write it in quotes",
    "found character '%'": "a value begins with a percent sign: write it in quotes",
    "mapping values are not allowed here": "a colon where none may be: write the value in quotes, or look at the "
    "indentation",
    "could not find expected ':'": "a line that is no KEY: VALUE",
    "expected <block end>": "the indentation does not fit that of the lines above",
    "found unhashable key": "found unhashable key: a key must be text",
    "but found another document": "a second document begins (---): a config is one",
}


class ConfigError(Exception):
    """The config cannot be used. ``problems`` has one line each, naming the place and the way out."""

    def __init__(self, problems: list[str], *, file: Path | None = None) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.file = file

    def lines(self) -> list[str]:
        """The problems, each with the file in front."""
        return [f"{self.file or 'config'}: {problem}" for problem in self.problems]


class _Loader(yaml.SafeLoader):
    """Like SafeLoader, but only true and false are truth values.

    YAML 1.1 took on, off, yes and no for such as well; ``backfill: off`` means the word. Fields that are truth values
    know these words anyway.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (as the base class has it)
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    lenient = False  # a value that cannot be had is None

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError, yaml.YAMLError) as exc:
            if self.lenient:
                return None
            if isinstance(exc, yaml.YAMLError):
                raise
            # a date or a number that looks like one and is none
            words = re.split(r"[:,]? *['\"]", str(exc))[0]
            raise ConfigError([f"not valid YAML: {words} (line {node.start_mark.line + 1})"]) from None


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?i:true|false)$"), list("tTfF"))


class Text:
    """A config file that is YAML. Sections can be taken out of it one by one, whatever the others are like."""

    def __init__(self, text: str) -> None:
        """Raises ``ConfigError`` if it is no YAML."""
        self._text = text
        with _Said(text):
            self._loader = _Loader(text)
            self._root = self._loader.get_single_node()
            self._twice = [(key.start_mark.line, key.value) for key in _twice(self._root, set())]

    def everything(self) -> Any:
        """The whole of it as plain values. Raises ``ConfigError``."""
        if self._twice:
            raise ConfigError([f"line {line + 1}: {key!r} is written twice" for line, key in self._twice])
        return self._construct(self._root)

    def section(self, name: str, *, lenient: bool = False) -> Any:
        """One top-level section as plain values, None without it. Raises ``ConfigError``.

        A lenient reader takes what can be read of it; of a key that is written twice, the last.
        """
        if not isinstance(self._root, yaml.MappingNode):
            raise ConfigError(["the config must be a mapping with at least the key sources"])
        found = [(key, value) for key, value in self._root.value if key.value == name]
        if not found:
            return None
        first, last = found[0][0].start_mark.line, found[-1][1].end_mark.line
        twice = [f"line {line + 1}: {key!r} is written twice" for line, key in self._twice if first <= line <= last]
        if twice and not lenient:
            raise ConfigError(twice)
        self._loader.lenient = lenient
        try:
            return self._construct(found[-1][1])
        finally:
            self._loader.lenient = False

    def _construct(self, node: yaml.Node | None) -> Any:
        with _Said(self._text):
            return None if node is None else self._loader.construct_document(node)


class _Said:
    """Tells what a parser met as a ``ConfigError``."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, exc: BaseException | None, traceback: Any) -> None:
        if isinstance(exc, yaml.YAMLError):
            raise ConfigError([_yaml_problem(exc, self._text)]) from None
        if isinstance(exc, RecursionError):
            raise ConfigError([NESTED]) from None


def _yaml_problem(exc: yaml.YAMLError, text: str) -> str:
    mark, problem = getattr(exc, "problem_mark", None), getattr(exc, "problem", None)
    if mark is None or not problem:
        return "not valid YAML: a character that no text has"
    line = text.splitlines()[mark.line] if mark.line < len(text.splitlines()) else ""
    words = next((words for begin, words in _YAML_WORDS.items() if problem.startswith(begin)), None)
    if words is None and problem.startswith("expected ',' or ") and "${" in line:
        words = 'inside { } and [ ] write a variable in quotes: "${NAME}"'
    if words is None:
        words = re.sub(r"'[^']*'|\"[^\"]*\"", lambda quoted: quoted[0] if len(quoted[0]) <= 3 else "…", problem)
        words = f"not valid YAML: {words}"
    return f"line {mark.line + 1}: {words}"


def _twice(node: yaml.Node | None, seen: set[int]) -> Iterator[yaml.ScalarNode]:
    """The keys that their mapping has already."""
    if node is None or id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    keys = set[str]()
    for item in node.value:
        for part in item if isinstance(item, tuple) else (item,):
            yield from _twice(part, seen)
        if isinstance(item, tuple) and isinstance(item[0], yaml.ScalarNode):
            if item[0].value in keys:
                yield item[0]
            keys.add(item[0].value)


def fill(value: Any, place: str, environment: Mapping[str, str], problems: list[str]) -> Any:
    """Fill in ``${VAR}``, ``${VAR:-default}``, ``$$`` and ``*_file`` everywhere."""
    if isinstance(value, str):
        return expand(value, place, environment, problems)
    if isinstance(value, list):
        return [fill(item, f"{place}[{i}]", environment, problems) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    out: dict[str, Any] = {}
    for key, item in value.items():
        at = f"{place}.{key}" if place else str(key)
        name = str(key)
        if not name.endswith("_file") or name in FILE_KEYS or isinstance(item, dict):
            out[name] = fill(item, at, environment, problems)
        elif name.removesuffix("_file") in value:
            problems.append(f"{at}: give either {name.removesuffix('_file')} or {name}, not both")
        else:
            filled = fill(item, at, environment, problems)
            out[name.removesuffix("_file")] = _read_secret(filled, at, problems)
    return out


def expand(text: str, place: str, environment: Mapping[str, str], problems: list[str]) -> str:
    """Fill in the variables of one text."""

    def one(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        if name is None:
            return "$"
        if name in environment and (environment[name] or default is None):
            return environment[name]
        if default is not None:
            return default
        problems.append(f"{place}: the environment variable {name} is not set")
        return _UNREAD

    if "${" in _VARIABLE.sub("", text):
        problems.append(f"{place}: a variable is written as ${{NAME}}, with letters, digits and _; a dollar sign as $$")
        return _UNREAD
    return _VARIABLE.sub(one, text)


def _read_secret(value: Any, place: str, problems: list[str]) -> Any:
    if isinstance(value, list):
        return [_read_secret(item, f"{place}[{i}]", problems) for i, item in enumerate(value)]
    if not isinstance(value, str) or not value:
        problems.append(f"{place}: must be the path of a file")
        return _UNREAD
    try:
        read = Path(value).read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        problems.append(f"{place}: cannot read the file: not UTF-8 text")
    except (OSError, ValueError) as exc:
        problems.append(f"{place}: cannot read the file: {getattr(exc, 'strerror', None) or exc}")
    else:
        if read.strip():
            from exporter.platform.fields import FileSecret  # pydantic: not for who only asks what is written

            return FileSecret(read, Path(value))
        problems.append(f"{place}: the file is empty; write the secret into it")
    return _UNREAD


def stands_below(line: str, failed: list[str]) -> bool:
    """Whether a problem is about a place whose value was never had: that one has been reported."""
    places = {re.sub(r"(_file)?(\[\d+\])?$", "", one.partition(": ")[0]) for one in failed}
    place = line.partition(": ")[0]
    return any(place == one or place.startswith((f"{one}.", f"{one}[")) for one in places)
