"""Where configurations lie, and how one is composed: without a running Hydra app, inside one, or beside one."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from hydra import __version__ as hydra_version
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qtarget.config.named_models import GROUP, HOW_TO_NAME, with_named_models
from qtarget.config.names import as_typed
from qtarget.config.unreadable import unreadable
from qtarget.errors import QTargetError

IS_HYDRA_1_3 = hydra_version.startswith("1.3.")
VERSION_BASE: dict[str, Any] = {"version_base": "1.3"} if IS_HYDRA_1_3 else {}
"""What Hydra is told of the version that its defaults are of: 1.4 warns wherever it is."""
SEARCH_PATH = "hydra.searchpath"
DESIGN_CLASSES = "qtarget.math.target.Mixture, Anchored, Signed, Induced"


def conf_dir() -> Path:
    """The shipped configurations: inside the installed package, or at the top of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parents[1] / "conf"


def user_conf_dir() -> Path | None:
    """./conf of the working folder, where users add yaml files of their own; None where that is ours or absent."""
    local = Path.cwd() / "conf"
    return local if local.is_dir() and local.resolve() != conf_dir() else None


def with_search_path(overrides: Sequence[str], config_dir: str | None = None) -> list[str]:
    """The overrides, and what puts the user's conf folder and the models that they name behind ours on Hydra's search
    path.

    Hydra reads one `hydra.searchpath`: folders named there by the user go first. config_dir: another one of the user's.
    """
    mine = [f"file://{folder}" for folder in (config_dir and Path(config_dir).absolute(), user_conf_dir()) if folder]
    others = [word for word in overrides if word.partition("=")[0].lstrip("+") != SEARCH_PATH]
    theirs = [folder for word in overrides if word not in others for folder in _search_folders(word)]
    named = with_named_models(others, [conf_dir(), *(Path(one.removeprefix("file://")) for one in (*theirs, *mine))])
    return [*named, search_path([*theirs, *mine])] if theirs or mine else named


def search_path(folders: Sequence[str]) -> str:
    """Hydra's override for folders such as file:///home/me/conf."""
    quoted = ("'" + folder.replace("\\", "\\\\").replace("'", "\\'") + "'" for folder in dict.fromkeys(folders))
    return f"{SEARCH_PATH}=[{','.join(quoted)}]"


def _search_folders(override: str) -> list[str]:
    """Of an override of the search path."""
    value = OverridesParser.create().parse_override(override).value()
    if not isinstance(value, list):
        raise QTargetError(f"{SEARCH_PATH} is a list of folders, such as [file://conf], got {override!r}")
    return [str(folder) for folder in value]


@contextmanager
def composing() -> Iterator[None]:
    """Hydra's compose API on our configurations, whatever Hydra state the caller already holds."""
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(config_dir=str(conf_dir()), **VERSION_BASE):
            yield
    finally:
        GlobalHydra.instance().hydra = outer  # leaving `initialize` has put another instance in its place


def compose_config(config_name: str, overrides: Sequence[str] = (), *, with_hydra: bool = False) -> DictConfig:
    """Compose `config_name`; raises QTargetError with the legal names where an override names something unknown.

    with_hydra: with Hydra's own settings under `hydra`.
    """
    check_keyed(overrides)
    with composing():
        try:
            complete = with_search_path(as_typed(overrides))
            return compose(config_name, overrides=complete, return_hydra_config=with_hydra)
        except (HydraException, OmegaConfBaseException) as error:
            raise _several_values_error(error) or config_error(error, config_name, overrides) from error


def _several_values_error(error: Exception) -> QTargetError | None:
    """Of several values where one is taken; Hydra's advice is --multirun, which `qtarget train` alone has."""
    swept = re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?=.*)'", str(error))
    if not swept or "--multirun" not in str(error):
        return None
    key, _, values = swept[1].partition("=")
    return QTargetError(
        f"{key} takes one value here, got {values}; `qtarget train -m` takes several. A list is {key}=[A,B], and a "
        f"text with a comma is quoted twice: {key}='\"A,B\"'"
    )


def check_keyed(overrides: Sequence[str]) -> None:
    """Raise QTargetError for an argument that sets nothing, with the group that it is an option of."""
    for argument in overrides:
        if "=" in argument or argument.startswith("~"):
            continue
        meant = [group for group in ("target", "model", "data", "experiment", "eval") if argument in options(group)]
        hint = f": did you mean {meant[0]}={argument}?" if meant else ""
        raise QTargetError(f"overrides are KEY=VALUE or GROUP=OPTION, got {argument!r}{hint}")


def register_resolver(name: str, of_configuration: Callable[[Mapping[Any, Any]], str]) -> None:
    """${NAME:} stands for what a function makes of the whole configuration."""
    register = "register_new_resolver" if IS_HYDRA_1_3 else "register_resolver"  # of omegaconf 2.4
    getattr(OmegaConf, register)(name, lambda *, _root_: of_configuration(_root_), replace=True)


def config_container(cfg: Mapping[Any, Any]) -> dict[str, Any]:
    """A composed configuration as plain data, resolved, without Hydra's own node; a copy of one that is plain."""
    if not isinstance(cfg, DictConfig):
        return {str(key): deepcopy(value) for key, value in cfg.items() if key != "hydra"}
    visible = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    container = OmegaConf.to_container(visible, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def to_yaml(cfg: Mapping[Any, Any]) -> str:
    """A configuration as `--cfg job` prints it."""
    return OmegaConf.to_yaml(cfg if isinstance(cfg, DictConfig) else escape_interpolations(cfg))


def interpolated_keys(cfg: Mapping[Any, Any], keys: Iterable[str]) -> list[str]:
    """Those of the keys whose values other keys give: name=${seed}."""
    return [key for key in keys if isinstance(cfg, DictConfig) and OmegaConf.is_interpolation(cfg, key)]


def options(group: str) -> list[str]:
    """The names a configuration group offers, ours and the user's."""
    folders = [conf_dir() / group] + ([user / group] if (user := user_conf_dir()) else [])
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


def list_designs() -> dict[str, dict[str, Any]]:
    """Every target design by name, with its `about`: formula, paper, year and where the official code differs."""
    return {name: about(name) for name in options("target")}


def about(name: str) -> dict[str, Any]:
    """Formula, paper, year and where the official code differs; – for what the yaml of a design doesn't say."""
    user = user_conf_dir()
    is_users = user is not None and (user / "target" / f"{name}.yaml").is_file()
    documented = None if is_users else shipped_designs().get(name)
    if documented is None:
        documented = compose_target(name).get("about") or {}
    return {field: documented.get(field, "–") for field in ("formula", "paper", "year", "differs")}


@cache
def shipped_designs() -> dict[str, dict[str, Any]]:
    """The `about` of every design that ships, read from its yaml: composing all of them takes seconds."""
    files = sorted((conf_dir() / "target").glob("*.yaml"))
    return {file.stem: yaml.safe_load(file.read_text(encoding="utf-8"))["about"] for file in files}


def compose_target(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The composed yaml of one design; overrides are dotted below `target`, as on the command line."""
    if name not in options("target"):
        raise QTargetError(f"unknown target {name!r}{nearest(name, options('target'))}")
    target: dict[str, Any] = config_container(compose_config("design", [f"target={name}", *overrides]))["target"]
    return target


def load_design(name: str, /, **changes: Any) -> Any:
    """A design from its yaml: load_design("target_sft", residual="uniform", **{"reliance.alpha": 0.5}).

    A key without a dot picks the option of a part (`residual="uniform"`), or sets a field of the design itself
    (`normalize="kept"`). A dotted key sets a field of a part.

    Works outside, inside and beside a running Hydra app. ./conf of the working folder is on the search path. Raises
    QTargetError for an unknown design, part option or field, and for a value out of range.
    """
    return instantiate_design(compose_target(name, [_design_override(key, value) for key, value in changes.items()]))


def instantiate_design(target: Mapping[str, Any]) -> Any:
    """The design a composed `target` node describes. `about` is documentation and stays behind."""
    check_is_design(target)
    return instantiate({key: value for key, value in target.items() if key != "about"})


def check_is_design(target: Any, name: str | None = None) -> None:
    """Raise QTargetError for a target that names no class. name: of its yaml; None: not known."""
    if not isinstance(target, Mapping) or isinstance(target.get("_target_"), str):
        return
    place = f"target={name}: conf/target/{name}.yaml" if name else "target: its yaml, conf/target/NAME.yaml,"
    raise QTargetError(f"{place} has no _target_; write one of {DESIGN_CLASSES}")


def instantiate(node: Mapping[Any, Any]) -> Any:
    """Hydra's instantiate; errors raised by a part reach the user as they were written."""
    from hydra.utils import instantiate as hydra_instantiate  # keeps start-up light

    try:
        plain = node if isinstance(node, DictConfig) else escape_interpolations(node)
        return hydra_instantiate(plain, _convert_="all", **_allow_list(plain))
    except HydraException as error:
        causes = list(_causes(error))
        own = next((cause for cause in causes if isinstance(cause, QTargetError)), None)
        raise own or QTargetError(_instantiation_error(str(error).split(", set env var")[0], causes[-1])) from error
    except QTargetError:
        raise
    except Exception as error:  # Hydra 1.4 leaves what a class raises as it is, and 1.3 doesn't
        raise QTargetError(_cannot_be_made(str(node.get("_target_")), error)) from error


def _cannot_be_made(target: str, cause: BaseException) -> str:
    return f"_target_: {target} can't be made of its fields: {type(cause).__name__}: {cause}"


def _instantiation_error(message: str, cause: BaseException) -> str:
    """Hydra's message about a `_target_` in plain words; where a class can't be found, where it is looked for."""
    called = re.match(r"Error in call to target '(.*?)'", message)
    if called:
        return _cannot_be_made(called[1], cause)
    missing = re.match(r"Error locating target '(.*?)'", message)
    if missing is None:
        message = message.split("\nfull_key", maxsplit=1)[0]
        return message if str(cause) in message else f"{message}: {cause}"
    return (
        f"_target_: {missing[1]} can't be imported ({cause}): a class of your own stands in a module of the folder you "
        f"work in, {Path.cwd()}, or of an installed package"
    )


def _allow_list(node: Mapping[Any, Any]) -> dict[str, Any]:
    """Of Hydra 1.4 on, which makes nothing that isn't listed: parts of qtarget, and those of one's own that a node
    names; Python's standard library (os.system) isn't among them.
    """
    if IS_HYDRA_1_3:
        return {}
    mine = [name for name in _target_paths(node) if name.partition(".")[0] not in sys.stdlib_module_names]
    return {"_execution_whitelist_": ["qtarget.*", *mine]}


def _target_paths(value: Any) -> Iterator[str]:
    """The `_target_` of a node and of those in it."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield str(value["_target_"])
        value = list(value.values())
    for below in value if isinstance(value, list | tuple | ListConfig) else ():
        yield from _target_paths(below)


def located(key: str, path: Any) -> Any:
    """What a `_target_` names: my_module.MyClass. Raises QTargetError, with the key, where there is no such thing."""
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise QTargetError(f"{key}={path} can't be imported: {error}") from error


MOVED = {
    "qtarget.track.sinks.Nothing": "qtarget.record.trackers.NoTracker",
    "qtarget.track.sinks.Wandb": "qtarget.record.trackers.Wandb",
}
"""Parts by the `_target_` that records of 0.1.0 have of them, and where they are now."""


def escape_interpolations(resolved: Any) -> Any:
    """Plain data that Hydra is to read as they are: everything is resolved, so ${…} is text, and no reference.

    A `_target_` of an earlier build becomes the class's path now.
    """
    if isinstance(resolved, Mapping):
        return {
            key: MOVED.get(str(value), value) if key == "_target_" else escape_interpolations(value)
            for key, value in resolved.items()
        }
    if isinstance(resolved, list | tuple):
        return [escape_interpolations(value) for value in resolved]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", resolved) if isinstance(resolved, str) else resolved


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and so on to the first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def config_error(error: Exception, config_name: str, overrides: Iterable[str]) -> QTargetError:
    """Hydra's complaint about an override, with the nearest legal name where one was misspelt."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        how = f". {HOW_TO_NAME}" if group == GROUP else ""
        return QTargetError(f"unknown {group} {name!r}{nearest(name, error.options)}{how}")
    if (text := unreadable(overrides)) is not None:
        return QTargetError(text)
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown:
        return _unknown_key(unknown.group(1), config_name, overrides)
    unmergeable = re.match(r"Error merging override (\S+?)=(.*)", str(error))
    if unmergeable and isinstance(error.__cause__, OmegaConfBaseException):
        key, value = unmergeable.groups()
        why = str(error.__cause__).split("\n")[0]
        return QTargetError(f"{key} can't be {value}: {why}. It has keys of its own: set {key}.KEY=VALUE")
    return QTargetError(str(error).split("\n    full_key")[0])


def _unknown_key(key: str, config_name: str, overrides: Iterable[str]) -> QTargetError:
    """The message for a key that isn't in the configuration, with the keys that are there beside it."""
    keys = {override: override.partition("=")[0] for override in overrides}
    others = [word for word, other in keys.items() if other == SEARCH_PATH or (other != key and "," not in word)]
    cfg = compose_config(config_name, others)
    if key.startswith("target/"):
        parts = sorted(
            str(part) for part, node in cfg.target.items() if isinstance(node, DictConfig) and part != "about"
        )
        return QTargetError(
            f"this target has no {key.removeprefix('target/')} to choose; its parts: {', '.join(parts)}"
        )
    node, name = cfg, key
    while "." in name:
        head, _, below = name.partition(".")
        if not isinstance(node.get(head), DictConfig):
            break
        node, name = node[head], below
    names = [str(field) for field in node if field not in ("_target_", "about")]
    if "." not in key and key in cfg.target:
        return QTargetError(f"unknown key {key!r}: did you mean target/{key}=OPTION or target.{key}.FIELD=VALUE?")
    if name in node or (not names and "_target_" not in node):  # {}: its keys are not known beforehand
        typed = next((word for word, other in keys.items() if other == key), f"{key}=VALUE")
        return QTargetError(f"{key} is not there to be changed: add it with a plus, +{typed}")
    if not names:
        return QTargetError(f"unknown key {key!r}: this part has no fields")
    return QTargetError(f"unknown key {key!r}{_kind_with(key) or nearest(name.partition('.')[0], names)}")


def _kind_with(key: str) -> str:
    """How the kind of a prior or teacher is chosen that has a key; empty where there is none."""
    node, _, name = key.rpartition(".")
    if node not in ("references.prior", "references.teacher"):
        return ""
    files = {kind: conf_dir() / "reference" / f"{kind}.yaml" for kind in ("frozen", "cached")}
    having = [f"reference@{node}={kind}" for kind, file in files.items() if name in OmegaConf.load(file)]
    return f": {' and '.join(having)} {'has' if len(having) == 1 else 'have'} it" if having else ""


def nearest(name: str, legal: Iterable[str]) -> str:
    """': did you mean X? allowed: …' for error messages."""
    names = sorted(legal)
    close = difflib.get_close_matches(name, names, n=1)
    return (f": did you mean {close[0]!r}?" if close else ".") + f" Allowed: {', '.join(names)}"


def _design_override(key: str, value: Any) -> str:
    """A dotted key is a part's field; a plain one names a part's option where there are any, else a field."""
    picks_option = "." not in key and options(f"target/{key}")
    value = "null" if value is None else value  # as Python prints it, None is a text to Hydra
    return f"target/{key}={value}" if picks_option else f"target.{key}={value}"
