"""Finds plugins without importing them, and imports one when it is used.

Discovery reads two pieces of data: the entry points of the group ``zoo.plugins`` and each plugin's
registry file. Each plugin that is used gets its own pluggy manager: only the owner of a model
can answer for it, and one plugin's faults cannot affect another.
"""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import spec
from .entry import API_VERSION
from .errors import MissingDependencyError, NotReadyError, PluginError, RegistryError, ZooError
from .installed import Damage, Point, entry_points, extras_with, normalised
from .interfaces import INTERFACES

if TYPE_CHECKING:
    from pluggy import PluginManager

    from .entry import Entry
    from .spec import RegistryFile

GROUP = "zoo.plugins"
HOST = "edgezoo"
"""zoo's own distribution. Its plugins' models are in the host's registry file."""


@dataclass(frozen=True)
class Plugin:
    """What discovery knows about one plugin."""

    package: str
    """The top-level import package."""
    distribution: str
    """Normalised name of the distribution that provides it."""
    version: str = ""
    state: str = "ok"
    """``ok``, ``conflict`` (usable, but one of its names is taken), ``blocked`` or ``fault``."""
    reason: str = ""
    folder: Path | None = None
    """The package's folder; bundled weights are in ``weights/<model>`` below it."""
    registry: RegistryFile | None = None
    """Its entries; None if the file is missing or broken."""

    def bundle(self, model: str) -> Path | None:
        """The folder for bundled files of a model or base; it need not exist."""
        return self.folder / "weights" / model if self.folder else None

    def card(self, model: str) -> Path | None:
        """Its card, in ``hub_cards`` next to its registry file; the file need not exist."""
        home = first_party_registry().parent if self.first_party else self.folder
        return home / "hub_cards" / model / "README.md" if home else None

    @property
    def first_party(self) -> bool:
        """Is it part of zoo's own distribution?"""
        return self.distribution == HOST


# --- discovery: data only -------------------------------------------------------------------------


def first_party_registry() -> Path:
    """zoo's own registry file: in the wheel inside the package, in a checkout above it."""
    here = Path(__file__).parent
    for path in (here / "registry.yaml", here.parent / "registry.yaml"):
        if path.is_file():
            return path
    raise RegistryError(f"zoo's own registry.yaml is missing next to {here}; reinstall zoo.")


@cache
def own_registry() -> RegistryFile:
    """zoo's own registry file, checked."""
    return spec.read(first_party_registry())


@cache
def discover() -> tuple[Plugin, ...]:
    """Every installed plugin, zoo's own first, then by distribution; imports none of them."""
    own = own_registry()
    ours = (
        {"zoo"} | {e.plugin for e in own.models.values()} | {b.plugin for b in own.bases.values()}
    )
    points, damaged = entry_points(GROUP)
    found = [_inspect(point, own, ours) for point in points]
    found += [_unreadable(damage) for damage in damaged]
    if not any(plugin.first_party for plugin in found):
        found += _without_metadata(ours - {"zoo"})
    found.sort(key=lambda p: (not p.first_party, p.distribution, p.package))
    _warn_of_unknown(found)
    return tuple(_without_doubles(found))


def _unreadable(damage: Damage) -> Plugin:
    reason = f"its metadata cannot be read ({damage.error}); reinstall or remove it"
    return Plugin(damage.folder, damage.folder, state="fault", reason=reason)


def _without_metadata(packages: set[str]) -> list[Plugin]:
    """zoo's plugins that were copied without the metadata that declares them: frozen, or
    vendored."""
    reason = (
        f"its package is here without the metadata of {HOST} ({HOST}-*.dist-info), which "
        f"declares it as a plugin; copy that too (PyInstaller: --copy-metadata {HOST})"
    )
    folders = {package: _folder(package) for package in sorted(packages)}
    return [_fault(Plugin(name, HOST, folder=f), reason) for name, f in folders.items() if f]


def _inspect(point: Point, own: RegistryFile, ours: set[str]) -> Plugin:
    plugin = Plugin(point.value, point.distribution, point.version)
    if not point.value.isidentifier():
        return _fault(
            plugin, f"its entry point must name a top-level package alone, not {point.value!r}"
        )
    if not plugin.first_party and point.value in ours:
        return _fault(plugin, f"taken name: the package {point.value} is zoo's own")
    plugin = replace(plugin, folder=_folder(point.value))
    if plugin.folder is None:
        return _fault(plugin, f"the package {point.value} cannot be found, or is a single module")
    if plugin.first_party:
        mine = {n: e for n, e in own.models.items() if e.plugin == point.value}
        bases = {n: b for n, b in own.bases.items() if b.plugin == point.value}
        plugin = replace(plugin, registry=replace(own, models=mine, bases=bases))
    else:
        try:
            plugin = replace(plugin, registry=_stranger_registry(plugin))
        except RegistryError as error:
            return _fault(plugin, str(error))
    return _block(plugin)


def _stranger_registry(plugin: Plugin) -> RegistryFile:
    assert plugin.folder is not None
    path = plugin.folder / "registry.yaml"
    if not path.is_file():
        raise RegistryError(
            f"no registry.yaml next to {plugin.package}/__init__.py. If the project has one, the "
            f"build leaves it out: setuptools ships it only with "
            f'[tool.setuptools.package-data] {plugin.package} = ["registry.yaml"]'
        )
    registry = spec.read(path, package=plugin.package)
    if registry.zoo_api != API_VERSION:
        newer = registry.zoo_api > API_VERSION
        raise RegistryError(
            f"made for zoo_api {registry.zoo_api}, this zoo has {API_VERSION}; "
            f"update {'zoo' if newer else plugin.distribution}"
        )
    return registry


def _fault(plugin: Plugin, reason: str) -> Plugin:
    return _block(replace(plugin, state="fault", reason=reason))


def _block(plugin: Plugin) -> Plugin:
    if _names_of(plugin) & _listed("ZOO_PLUGINS_DISABLE"):
        return replace(plugin, state="blocked", reason="named in ZOO_PLUGINS_DISABLE")
    allowed = "ZOO_PLUGINS" not in os.environ or _names_of(plugin) & _listed("ZOO_PLUGINS")
    if not plugin.first_party and not allowed:
        return replace(plugin, state="blocked", reason="not named in ZOO_PLUGINS")
    return plugin


def _names_of(plugin: Plugin) -> set[str]:
    """The names for it in the variables: its package and its distribution."""
    return {normalised(plugin.package), normalised(plugin.distribution)}


def _listed(variable: str) -> set[str]:
    words = {word.strip() for word in os.environ.get(variable, "").split(",")}
    return {normalised(word) for word in words - {""}}


def _warn_of_unknown(found: list[Plugin]) -> None:
    """Warn about misspelt names, which would silently have no effect."""
    known = {name for plugin in found for name in _names_of(plugin)}
    for variable in ("ZOO_PLUGINS", "ZOO_PLUGINS_DISABLE"):
        if unknown := sorted(_listed(variable) - known):
            text = f"{variable} names {', '.join(unknown)}, but no installed plugin has this name."
            warnings.warn(text, stacklevel=2)


def _without_doubles(plugins: list[Plugin]) -> list[Plugin]:
    """Disable both of two distributions with the same package: which one would run is undefined."""
    owners: dict[str, set[str]] = {}
    for plugin in plugins:
        owners.setdefault(plugin.package, set()).add(plugin.distribution)
    kept: dict[tuple[str, str], Plugin] = {}
    for plugin in plugins:
        claims = owners[plugin.package]
        if len(claims) > 1 and plugin.state == "ok" and not plugin.first_party:
            plugin = _fault(
                plugin,
                f"the package {plugin.package} is claimed by {' and '.join(sorted(claims))}; "
                "uninstall one",
            )
            plugin = replace(plugin, registry=None)
        kept.setdefault((plugin.distribution, plugin.package), plugin)
    return list(kept.values())


def _folder(package: str) -> Path | None:
    """The folder of a top-level package, found without importing it."""
    from importlib.util import find_spec

    try:
        found = find_spec(package)
    except (ImportError, ValueError, AttributeError):
        return None
    places = found.submodule_search_locations if found else None
    return Path(next(iter(places))) if places else None


# --- use: one plugin at a time --------------------------------------------------------------------


def call(plugin: Plugin, hook: str, request: Any) -> Any:
    """Call a hook of one plugin.

    Raises NotReadyError if it does not offer the hook, MissingDependencyError if a package is not
    installed, and PluginError, with the cause chained, for any other error in it.
    """
    entry = request.entry
    manager = _activate(plugin, entry)
    caller = getattr(manager.hook, hook)
    if not caller.get_hookimpls():
        raise NotReadyError(
            f"{entry.name} has no {hook.removeprefix('zoo_')}: {plugin.package} does not offer it."
        )
    result = _guarded(lambda: caller(request=request), plugin, hook, entry)
    if result is None:
        raise PluginError(f"{plugin.package}: {hook} returned nothing. {_blame(plugin)}")
    return result


def import_object(plugin: Plugin, target: str, entry: Entry) -> Any:
    """Import ``module:name`` from a plugin; errors as ``call``."""
    _activate(plugin, entry)

    def find() -> Any:
        from importlib import import_module

        module, _, name = target.partition(":")
        return getattr(import_module(module), name)

    return _guarded(find, plugin, target, entry)


_managers: dict[tuple[str, str], PluginManager] = {}


def require_usable(plugin: Plugin, entry: Entry) -> None:
    """Raise PluginError if discovery found the plugin blocked or broken."""
    if plugin.state in ("blocked", "fault"):
        raise PluginError(f"{entry.name}: its plugin {plugin.package} is {_state(plugin)}.")


def _activate(plugin: Plugin, entry: Entry) -> PluginManager:
    require_usable(plugin, entry)
    key = (plugin.distribution, plugin.package)
    if key not in _managers:
        _managers[key] = _register(plugin, entry)
    return _managers[key]


def _register(plugin: Plugin, entry: Entry | None) -> PluginManager:
    from importlib import import_module

    import pluggy

    from . import hookspecs

    manager = pluggy.PluginManager("zoo")
    manager.add_hookspecs(hookspecs)
    module = _guarded(lambda: import_module(plugin.package), plugin, "import", entry)
    _guarded(lambda: manager.register(module, plugin.package), plugin, "registration", entry)
    _guarded(manager.check_pending, plugin, "registration", entry)
    if plugin.registry and plugin.registry.models and not manager.hook.zoo_build.get_hookimpls():
        raise PluginError(
            f"{plugin.package} has models but no zoo_build hook in its __init__.py. "
            f"{_blame(plugin)}"
        )
    return manager


def _guarded(action: Any, plugin: Plugin, what: str, entry: Entry | None) -> Any:
    """Run a plugin's code; its exceptions become ZooErrors, with the cause chained."""
    try:
        return action()
    except ZooError:
        raise
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing and missing not in (plugin.package, "zoo"):
            likely = [entry.extra] if entry and entry.extra else []
            likely.append(what.removeprefix("zoo_"))  # of the verb: zoo_train, zoo_bench
            bring = extras_with(plugin.distribution, missing)
            extra = next((e for e in [*likely, *bring] if e in bring), entry and entry.extra)
            advice = (
                f'pip install "{plugin.distribution}[{extra}]"' if extra else f"install {missing}"
            )
            raise MissingDependencyError(
                f"{entry.name if entry else plugin.package} needs {missing}, which is not "
                f"installed. Run: {advice}",
                name=missing,
            ) from error
        raise PluginError(_failed(plugin, what, error)) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # also SystemExit and others
        raise PluginError(_failed(plugin, what, error)) from error


def _failed(plugin: Plugin, what: str, error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    shown = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{plugin.package}: {what} failed with {shown}. {_blame(plugin)}"


def _blame(plugin: Plugin) -> str:
    if plugin.first_party:
        return "This is a fault in zoo; please report it."
    return (
        f"Report it to {plugin.distribution}, or switch the plugin off with "
        f"ZOO_PLUGINS_DISABLE={plugin.package}."
    )


def _state(plugin: Plugin) -> str:
    return f"{'broken' if plugin.state == 'fault' else 'blocked'}: {plugin.reason}"


# --- zoo plugins --check --------------------------------------------------------------------------


def check(plugin: Plugin, *, timeout: float = 60.0) -> str | None:
    """Import and register a plugin, and import each entry's class, in a separate process.

    Returns None on success, else the reason. A plugin that exits, hangs or kills the process is
    detected too: only a token that the process prints at the very end counts as success.
    """
    import secrets
    import subprocess
    import tempfile

    if plugin.state in ("blocked", "fault"):
        return _state(plugin)
    token = secrets.token_hex(16)
    # -P: nothing is imported from the current folder. Files, not pipes: a process that the plugin
    # leaves behind would keep a pipe open and block this one.
    command = [sys.executable, "-P", "-m", "zoo.plugins", plugin.distribution, plugin.package]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            done = subprocess.run(
                command, input=token.encode(), stdout=out, stderr=err, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return f"did not finish within {timeout:g} s"
        said = []
        for file in (out, err):
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            said.append(file.read().decode("utf-8", "replace").splitlines())
    if done.returncode == 0 and token in said[0]:
        return None
    lines = [line for line in said[1] if line.strip()]
    return lines[-1] if lines else f"the process ended early, with exit code {done.returncode}"


def _check_here(distribution: str, package: str) -> None:
    plugin = next(p for p in discover() if (p.distribution, p.package) == (distribution, package))
    token = sys.stdin.readline().strip()  # before the plugin can read it
    out = sys.stdout
    _register(plugin, None)
    for entry in plugin.registry.models.values() if plugin.registry else ():
        if entry.status != "planned" and entry.class_:
            found = import_object(plugin, entry.class_, entry)
            expected = INTERFACES[entry.interface]
            if not (isinstance(found, type) and issubclass(found, expected)):
                raise PluginError(f"{entry.name}: {entry.class_} is not a {entry.interface} class.")
    print(f"\n{token}", file=out, flush=True)


if __name__ == "__main__":
    try:
        _check_here(*sys.argv[1:3])
    except ZooError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(1) from None
