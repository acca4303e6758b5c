"""Every error zoo raises on purpose, and the exit code the command gives it.

    ZooError
    ├── UsageError            also ValueError        the call itself is wrong            exit 2
    │   ├── UnknownModelError also LookupError       no such model, base or plugin
    │   ├── OptionError       also ValueError        unknown option, wrong type, out of range
    │   └── DeviceError       also ValueError        a device or dtype this machine cannot give
    ├── InputError            also ValueError        an image, text or feature that cannot be used
    ├── OutputError           also OSError           cannot write there, or would overwrite
    ├── NotReadyError         also NotImplementedError   planned, untrained, or a verb a model lacks
    ├── MissingDependencyError also ImportError      an extra is not installed
    ├── RegistryError         also ValueError        a registry file breaks its schema
    ├── PluginError           also RuntimeError      a plugin is blocked or broken
    └── WeightsError          also ValueError        weights that are not what they should be
        ├── WeightsNotFoundError also FileNotFoundError   no place had them
        └── HubError          also ConnectionError   the Hub could not be reached or said no

A message says what was asked (with the offending value), what is true, and what to do next.
Each class also is the built-in exception that people would catch without knowing zoo.
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
    """A device or dtype that this machine or torch build cannot give."""


class InputError(ZooError, ValueError):
    """Data handed in by the user (an image, a text, features) cannot be used as it is."""


class OutputError(ZooError, OSError):
    """The output cannot be written, or something the user owns is already there."""


class NotReadyError(ZooError, NotImplementedError):
    """The model is planned, has no trained weights, or does not offer this verb."""


class MissingDependencyError(ZooError, ImportError):
    """A package that this model needs is not installed; the message names the extra."""


class RegistryError(ZooError, ValueError):
    """A registry file breaks its schema; the message lists every mistake with its line."""


class PluginError(ZooError, RuntimeError):
    """A plugin is blocked or broken, or did not keep its side of the contract."""


class WeightsError(ZooError, ValueError):
    """Weights differ from what the registry or the network says: nothing was loaded."""


class WeightsNotFoundError(WeightsError, FileNotFoundError):
    """No place has the weights; the message lists each place that was tried and why it failed."""


class HubError(WeightsError, ConnectionError):
    """The Hub is unreachable, refused the request, or does not have this repository."""
