"""All models and bases of all plugins under one roof: names, collisions, near names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType

from . import plugins, spec
from .errors import PluginError, UnknownModelError
from .installed import normalised
from .plugins import HOST, Plugin
from .spec import BaseEntry, Entry


@dataclass(frozen=True)
class Catalogue:
    """Read-only view of what is installed."""

    models: Mapping[str, tuple[Entry, ...]]
    """Name -> entries that claim it, ours first. One of ours is always alone."""
    bases: Mapping[str, BaseEntry]
    qualified: Mapping[str, Entry]
    """``dist:name`` -> entry, for every entry."""
    plugins: tuple[Plugin, ...]

    def owner(self, entry: Entry | BaseEntry) -> Plugin:
        """The plugin that brought an entry. Raises PluginError where it is not installed."""
        for plugin in self.plugins:
            if (plugin.package, plugin.distribution) == (entry.plugin, entry.distribution):
                return plugin
        raise PluginError(
            f"{entry.name}: its plugin {entry.plugin} is not installed. "
            f"Reinstall {entry.distribution} with pip."
        )

    def entry(self, name: str) -> Entry:
        """The entry for a name or ``dist:name``.

        Raises UnknownModelError with the nearest names, or with both owners where two strangers
        claim one name.
        """
        if ":" in name:
            dist, _, rest = name.partition(":")
            key = f"{normalised(dist)}:{rest}"
            if key in self.qualified:
                return self.qualified[key]
        claims = self.models.get(name, ())
        if len(claims) > 1:  # a plugin that was switched off no longer competes
            claims = tuple(e for e in claims if not self._blocked(e)) or claims
        if len(claims) == 1:
            return claims[0]
        if claims:
            choices = " or ".join(repr(f"{e.distribution}:{name}") for e in claims)
            raise UnknownModelError(f"{name!r} is claimed by two plugins. Say which: {choices}.")
        hint = spec.near(name, self.qualified if ":" in name else self.models)
        broken = [p.package for p in self.plugins if p.registry is None]
        raise UnknownModelError(
            f"no model is called {name!r}"
            + (f"; did you mean {' or '.join(map(repr, hint))}?" if hint else ".")
            + " `zoo list` shows all."
            + (f" Not readable: {', '.join(broken)} (see `zoo plugins`)." if broken else "")
        )

    def entries(self) -> list[Entry]:
        """Every entry that claims a plain name, ours first; rivals are both here."""
        return [entry for claims in self.models.values() for entry in claims]

    def _blocked(self, entry: Entry) -> bool:
        return any(
            p.state == "blocked"
            for p in self.plugins
            if (p.package, p.distribution) == (entry.plugin, entry.distribution)
        )


@cache
def catalogue() -> Catalogue:
    """Merge the registry files of all plugins, ours first."""
    own = plugins.own_registry()
    models: dict[str, list[Entry]] = {
        name: [replace(entry, distribution=HOST)] for name, entry in own.models.items()
    }
    bases = {name: replace(base, distribution=HOST) for name, base in own.bases.items()}
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
            bases.setdefault(name, replace(base, distribution=plugin.distribution))
    return Catalogue(
        MappingProxyType({name: tuple(claims) for name, claims in models.items()}),
        MappingProxyType(bases),
        MappingProxyType(qualified),
        tuple(seen),
    )


def forget() -> None:
    """Forget what was found, so that the next look sees plugins installed since."""
    import importlib

    importlib.invalidate_caches()
    plugins.own_registry.cache_clear()
    plugins.discover.cache_clear()
    catalogue.cache_clear()
