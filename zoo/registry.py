"""The merged models and bases of all plugins: names, collisions, near names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

from . import plugins
from .entry import BaseEntry, Entry, near
from .errors import PluginError, UnknownModelError
from .installed import normalised
from .plugins import HOST, Plugin


@dataclass(frozen=True)
class Catalogue:
    """Read-only view of what is installed."""

    models: Mapping[str, tuple[Entry, ...]]
    """Name -> entries that claim it; a name of zoo's own has one entry."""
    bases: Mapping[str, tuple[BaseEntry, ...]]
    """The same for bases."""
    qualified: Mapping[str, Entry]
    """``dist:name`` -> entry, for every entry."""
    plugins: tuple[Plugin, ...]

    def owner(self, entry: Entry | BaseEntry) -> Plugin:
        """The plugin that provides an entry. Raises PluginError if it is not installed."""
        for plugin in self.plugins:
            if (plugin.package, plugin.distribution) == (entry.plugin, entry.distribution):
                return plugin
        raise PluginError(
            f"{entry.name}: its plugin {entry.plugin} is not installed. "
            f"Reinstall {entry.distribution} with pip."
        )

    def entry(self, name: str) -> Entry:
        """The entry for a name or ``dist:name``.

        Raises UnknownModelError with the nearest names, or with both owners if two third-party
        plugins claim the name.
        """
        if ":" in name:
            dist, _, rest = name.partition(":")
            key = f"{normalised(dist)}:{rest}"
            if key in self.qualified:
                return self.qualified[key]
        claims = self.models.get(name, ())
        if len(claims) > 1:  # a plugin that was switched off no longer competes
            claims = tuple(e for e in claims if not self.blocked(e)) or claims
        if len(claims) == 1:
            return claims[0]
        if claims:
            choices = " or ".join(repr(f"{e.distribution}:{name}") for e in claims)
            raise UnknownModelError(f"{name!r} is claimed by two plugins. Write {choices}.")
        hint = near(name, self.qualified if ":" in name else self.models)
        broken = [p.package for p in self.plugins if p.registry is None]
        raise UnknownModelError(
            f"no model is called {name!r}"
            + (f"; did you mean {' or '.join(map(repr, hint))}?" if hint else ".")
            + " `zoo list` shows all."
            + (f" Not readable: {', '.join(broken)} (see `zoo plugins`)." if broken else "")
        )

    def entries(self) -> list[Entry]:
        """Every entry that claims a plain name, zoo's own first, including all rivals."""
        return [entry for claims in self.models.values() for entry in claims]

    def base(self, name: str) -> BaseEntry | None:
        """The base for a name or ``dist:name``, or None; UnknownModelError if two claim it."""
        dist, colon, rest = name.rpartition(":")
        claims = self.bases.get(rest, ())
        if colon:
            claims = tuple(b for b in claims if b.distribution == normalised(dist))
        elif len(claims) > 1 and claims[0].distribution != HOST:
            choices = " or ".join(repr(f"{b.distribution}:{name}") for b in claims)
            raise UnknownModelError(f"base {name!r} is claimed by two plugins. Write {choices}.")
        return claims[0] if claims else None

    def blocked(self, entry: Entry) -> bool:
        """Is the plugin that provides an entry switched off?"""
        return any(
            p.state == "blocked"
            for p in self.plugins
            if (p.package, p.distribution) == (entry.plugin, entry.distribution)
        )


@cache
def catalogue() -> Catalogue:
    """Merge the registry files of all plugins, zoo's own first."""
    own = plugins.own_registry()
    models: dict[str, list[Entry]] = {
        name: [replace(entry, distribution=HOST)] for name, entry in own.models.items()
    }
    bases: dict[str, list[BaseEntry]] = {
        name: [replace(base, distribution=HOST)] for name, base in own.bases.items()
    }
    qualified = {f"{HOST}:{name}": claims[0] for name, claims in models.items()}
    seen: list[Plugin] = []
    for plugin in plugins.discover():
        if plugin.first_party or plugin.registry is None:
            seen.append(plugin)
            continue
        taken = [name for name in plugin.registry.models if name in own.models]
        twice = [n for n in plugin.registry.models if f"{plugin.distribution}:{n}" in qualified]
        if twice:
            reason = f"{', '.join(twice)} is claimed twice by {plugin.distribution}"
            seen.append(replace(plugin, state="fault", reason=reason, registry=None))
            continue
        if taken and plugin.state == "ok":
            names = ", ".join(f"{plugin.distribution}:{name}" for name in taken)
            reason = f"taken name: {', '.join(taken)} is zoo's own; reachable as {names}"
            plugin = replace(plugin, state="conflict", reason=reason)
        seen.append(plugin)
        assert plugin.registry is not None
        for name, entry in plugin.registry.models.items():
            entry = replace(entry, distribution=plugin.distribution)
            qualified[f"{plugin.distribution}:{name}"] = entry
            if name not in taken:
                models.setdefault(name, []).append(entry)
        for name, base in plugin.registry.bases.items():
            bases.setdefault(name, []).append(replace(base, distribution=plugin.distribution))
    return Catalogue(
        MappingProxyType({name: tuple(claims) for name, claims in models.items()}),
        MappingProxyType({name: tuple(claims) for name, claims in bases.items()}),
        MappingProxyType(qualified),
        tuple(_with_rivals(plugin, seen) for plugin in seen),
    )


def _with_rivals(plugin: Plugin, plugins: list[Plugin]) -> Plugin:
    """The plugin, marked where another plugin claims one of its models' names."""
    if plugin.state != "ok" or plugin.registry is None:
        return plugin
    said = []
    for name in plugin.registry.models:
        others = sorted(
            {
                p.distribution
                for p in plugins
                if p.registry is not None and name in p.registry.models and p.state != "blocked"
            }
            - {plugin.distribution}
        )
        if others:
            mine = name if plugin.first_party else f"{plugin.distribution}:{name}"
            said.append(f"{name} is also claimed by {', '.join(others)}; this one is {mine}")
    if not said:
        return plugin
    state = plugin.state if plugin.first_party else "conflict"  # zoo keeps its names
    return replace(plugin, state=state, reason="; ".join(said))


def forget() -> None:
    """Clear the caches, so that newly installed plugins are found."""
    import importlib

    importlib.invalidate_caches()
    plugins.own_registry.cache_clear()
    plugins.discover.cache_clear()
    catalogue.cache_clear()
