"""What could stand behind `qtarget train …`: groups, their options, and keys, by Hydra's own completion."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qtarget.config.composing import composing, with_search_path
from qtarget.config.identity import register_resolvers
from qtarget.config.names import as_typed

CATEGORIES = ("experiment",)
"""Groups whose folders sort their options; those of others (target/residual) are groups themselves."""
HIDDEN = ("_target_=", "about.", "hydra.runtime.")


def keys(config_name: str, overrides: Sequence[str], word: str) -> list[str]:
    """What `word` could become behind `overrides`; whole ones end with a space. Nothing where these fail."""
    register_resolvers()
    usable = [override for override in overrides if not set(override) & set(" \t'\"")]
    with composing():
        completion = Completion(GlobalHydra.instance().config_loader(), config_name, with_search_path(as_typed(usable)))
        try:
            return completion.values(word) if "=" in word else completion.names(word)
        except (HydraException, OmegaConfBaseException, SystemExit):
            return []


class Completion(DefaultCompletionPlugin):
    """Hydra 1.3 completes `target=d`, and neither group@package=, nor behind a comma, nor options in folders."""

    def __init__(self, config_loader: ConfigLoader, config_name: str, overrides: Sequence[str]) -> None:
        super().__init__(config_loader)
        self.config_name, self.overrides = config_name, list(overrides)

    def values(self, word: str) -> list[str]:
        """Options of a group; true or false; of another key what it is."""
        key, _, value = word.partition("=")
        earlier, comma, last = value.rpartition(",")
        group = key.partition("@")[0]
        begun = f"{key}={earlier}{comma}"
        if options := self._options(group.lstrip("+"), last):
            return [f"{begun}{option}" for option in options]
        now = OmegaConf.select(self._config(), group.lstrip("+"), throw_on_resolution_failure=False)
        if isinstance(now, bool):
            return [f"{begun}true ", f"{begun}false "]
        return [f"{begun}{now} "] if isinstance(now, int | float | str) else []

    def _options(self, group: str, beginning: str) -> list[str]:
        folder, slash, _ = beginning.rpartition("/")
        path = f"{group}/{folder}" if slash else group
        whole = [f"{folder}{slash}{name} " for name in self._listed(path, ObjectType.CONFIG)]
        folders = self._listed(path, ObjectType.GROUP) if group in CATEGORIES else []
        return [*whole, *(f"{folder}{slash}{name}/" for name in folders if name != "common")]

    def _listed(self, group: str, kind: ObjectType) -> list[str]:
        return self.config_loader.get_group_options(group, kind, self.config_name, self.overrides)

    def names(self, word: str) -> list[str]:
        """Groups with = or /, and keys."""
        config = self._config()
        choices = [str(choice) for choice in config.hydra.runtime.choices if word or not set(str(choice)) & set("/@")]
        names = [f"{choice}=" for choice in choices if choice.startswith(word)]
        for name in self._query(self.config_name, " ".join(["-m", *self.overrides, word])):
            if name.endswith(("/", ".")) or _sets(name, config, word):
                names.append(name)
            elif not name.endswith("="):  # a group with options and groups below it
                names.append(f"{name}/")
        shown = names if word else [name for name in names if not name.startswith("hydra")]
        return [name for name in shown if not name.endswith(HIDDEN) and not name.startswith(HIDDEN)]

    def _config(self) -> DictConfig:
        return self.config_loader.load_configuration(self.config_name, self.overrides, run_mode=RunMode.MULTIRUN)


def _sets(name: str, config: DictConfig, word: str) -> bool:
    """Whether it is a key with a value; groups that no default names are set with a + only."""
    return name.endswith("=") and (word.startswith(("+", "~")) or "." in name or name.removesuffix("=") in config)
