"""Every error zoo raises on purpose, and the exit code the command gives it.

    ZooError
    ├── UsageError            also ValueError        the call itself is wrong            exit 2
    │   ├── UnknownModelError also LookupError       no such model, base or plugin
    │   ├── OptionError       also ValueError        unknown option, wrong type, out of range
    │   └── DeviceError       also ValueError        a device or dtype that is not available
    ├── InputError            also ValueError        an image, text or feature that cannot be used
    ├── OutputError           also OSError           cannot write there, or would overwrite
    ├── NotReadyError         also NotImplementedError   planned, untrained, or a verb a model lacks
    ├── MissingDependencyError also ImportError      an extra is not installed
    ├── RegistryError         also ValueError        a registry file breaks its schema
    ├── PluginError           also RuntimeError      a plugin is blocked or broken
    └── WeightsError          also ValueError        missing, damaged or wrong weights
        ├── WeightsNotFoundError also FileNotFoundError   found nowhere
        └── HubError          also ConnectionError   the Hub is unreachable or refused

A message says what is wrong, with the offending value, and what to do next.
Each class also derives from a built-in exception, so that callers can catch it without zoo.
"""

from __future__ import annotations


class ZooError(Exception):
    """Base of all errors that zoo raises on purpose."""

    exit_code = 1


class UsageError(ZooError, ValueError):
    """The call itself is wrong; trying again unchanged cannot help."""

    exit_code = 2


class UnknownModelError(UsageError, LookupError):
    """No model, base or plugin has this name."""


class OptionError(UsageError):
    """An option is unknown, of the wrong type, or out of its range."""


class DeviceError(UsageError):
    """The device or dtype is not available on this machine or in this torch build."""


class InputError(ZooError, ValueError):
    """Input data (an image, a text, features) cannot be used."""


class OutputError(ZooError, OSError):
    """The output cannot be written, or would replace something."""


class NotReadyError(ZooError, NotImplementedError):
    """The model is planned, has no trained weights, or does not offer this verb."""


class MissingDependencyError(ZooError, ImportError):
    """A package that this model needs is not installed; the message names the extra."""


class RegistryError(ZooError, ValueError):
    """A registry file breaks its schema; the message lists every mistake with its line."""


class PluginError(ZooError, RuntimeError):
    """A plugin is blocked or broken, or breaks the plugin contract."""


class WeightsError(ZooError, ValueError):
    """Weights do not match the registry or the network; nothing was loaded."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """The weights were not found; the message lists each place tried and why it failed."""


class HubError(WeightsError, ConnectionError):
    """The Hub is unreachable, refused the request, or does not have this repository."""
