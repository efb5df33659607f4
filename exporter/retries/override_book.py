"""What was said of dead letters, in memory: by people, and by the engine. Follows the commits, never ahead of them."""

from collections.abc import Iterable, Iterator

from exporter.model.retries import Override, OverrideAction, Scope


class OverrideBook:
    """Overrides that hold, and those that ended lately."""

    def __init__(self) -> None:
        self._all: dict[str, Override] = {}
        self._of_root: dict[tuple[str, str], tuple[Override, ...]] = {}
        self._shared: dict[str, tuple[Override, ...]] = {}  # what was said of more than one root, by source

    def __iter__(self) -> Iterator[Override]:
        return iter(self._all.values())

    def keep(self, overrides: Iterable[Override]) -> None:
        """Know these, and no others."""
        self._all, self._shared, self._of_root = {}, {}, {}
        for override in overrides:
            self.put(override)

    def put(self, override: Override) -> None:
        """Know this one as it is now."""
        self.end(override.id)
        self._all[override.id] = override
        if override.scope is Scope.ROOT:
            key = (override.source, override.key)
            self._of_root[key] = (*self._of_root.get(key, ()), override)
        else:
            self._shared = {}

    def end(self, identity: str) -> None:
        """Know it no more, if it was known."""
        override = self._all.pop(identity, None)
        if override is None:
            return
        if override.scope is Scope.ROOT:
            key = (override.source, override.key)
            left = tuple(one for one in self._of_root.get(key, ()) if one.id != identity)
            if left:
                self._of_root[key] = left
            else:
                self._of_root.pop(key, None)
        else:
            self._shared = {}

    def of_root(self, source: str, root: str) -> tuple[Override, ...]:
        """What was said of one root; the very same object while nothing has changed."""
        return self._of_root.get((source, root), ())

    def shared(self, source: str) -> tuple[Override, ...]:
        """What was said of more than one root of a source; the very same object while nothing has changed."""
        found = self._shared.get(source)
        if found is None:
            found = tuple(o for o in self if o.scope is not Scope.ROOT and o.source in ("", source))
            self._shared[source] = found
        return found

    def holding(self, now: float) -> list[Override]:
        return [override for override in self if override.holds(now)]

    def is_paused(self, source: str, now: float) -> bool:
        """Whether somebody paused the source, or everything."""
        return any(
            override.action is OverrideAction.PAUSE
            and override.scope in (Scope.ENGINE, Scope.SOURCE)
            and override.source in ("", source)
            for override in self.holding(now)
        )
