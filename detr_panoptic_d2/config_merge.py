"""Merging files and options into a config, with errors that name the file and the key.

Only plain yaml is read. Detectron2 by default also reads yaml that makes Python objects, which can
run any code.
"""

import contextlib
import re
from collections.abc import Iterator

import yaml
from detectron2.config import CfgNode

from .config_check import did_you_mean
from .errors import UserError

_WRONG_TYPE = re.compile(
    r"Type mismatch \(<class '(?:\w+\.)*(\w+)'> vs\. .* with values "
    r"\((.*) vs\. (.*)\) for config key: (\S+)",
    re.DOTALL,
)
_UNKNOWN_KEY = re.compile(r"Non-existent (?:config )?key: (\S+)")


def merge_file(cfg: CfgNode, path: str) -> None:
    """Merge a yaml file, and what its ``_BASE_`` names, into a config.

    Raises:
        FileNotFoundError: its ``_BASE_`` is missing.
        UserError: it is no config.
    """
    with _errors_about(cfg, f"Config '{path}'"):
        cfg.merge_from_file(path, allow_unsafe=False)


def merge_options(cfg: CfgNode, options: list[str]) -> None:
    """Merge a flat list of keys and values into a config.

    Raises:
        UserError: a key is not known, or its value is of the wrong type, or missing.
    """
    if len(options) % 2:
        raise UserError(
            f"The options {' '.join(map(str, options))} are not pairs of KEY VALUE: one value is "
            "missing. Put a value with spaces or commas in quotes."
        )
    with _errors_about(cfg, "The command's options"):
        cfg.merge_from_list(options)


@contextlib.contextmanager
def _errors_about(cfg: CfgNode, source: str) -> Iterator[None]:
    try:
        yield
    except yaml.constructor.ConstructorError as error:
        raise UserError(
            f"{source}: {_at(error)}{error.problem}. Objects of Python are not made from a config, "
            "because that can run code: write plain values."
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{source} is no valid yaml: {_at(error)}{_problem(error)}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is no text file: {error}.") from error
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{source}: {_explained(cfg, error)}") from error


def _explained(cfg: CfgNode, error: Exception) -> str:
    """What yacs says, in other words where it is about a key."""
    text = str(error.args[0]) if error.args else type(error).__name__
    if found := _WRONG_TYPE.search(text):
        kind, old, new, key = found.groups()
        if kind == "CfgNode":
            return f"{key} is a group of keys and takes no value; name one of its keys."
        return f"{key} is {new!r}, but must be of type {kind}, such as {old!r}."
    if found := _UNKNOWN_KEY.search(text):
        key, keys = found.group(1), _keys(cfg)
        hint = did_you_mean(key, keys) or did_you_mean(key.rsplit(".", 1)[-1], _last_parts(keys))
        return f"there is no key {key}.{hint} The keys are in detr_panoptic_d2/config.py."
    if isinstance(error, TypeError | AttributeError):
        return "it is not a mapping of keys to values, as MODEL: {MASK_ON: True} is."
    return text


def _keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    """Full names of keys and of groups of keys."""
    keys = []
    for key, value in cfg.items():
        keys.append(prefix + key)
        if isinstance(value, CfgNode):
            keys += _keys(value, f"{prefix}{key}.")
    return keys


def _last_parts(keys: list[str]) -> list[str]:
    return sorted({key.rsplit(".", 1)[-1] for key in keys})


def _at(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: " if mark else ""


def _problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]
