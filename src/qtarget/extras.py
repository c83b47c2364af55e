"""What `pip install qtarget` leaves to an extra."""

from __future__ import annotations

from importlib.util import find_spec

from qtarget.errors import QTargetError

LAB = (
    "accelerate",
    "datasets",
    "filelock",
    "gguf",
    "jinja2",
    "lightning",
    "math_verify",
    "matplotlib",
    "peft",
    "platformdirs",
    "psutil",
    "pylatexenc",
    "reasoning_gym",
    "rich",
    "scipy",
    "torchmetrics",
    "transformers",
    "wandb",
    "yaml",
)
"""Modules of the extra `lab`, as pyproject.toml lists their packages."""

TRAINER = ("accelerate", "transformers", "yaml")
"""Modules that `qtarget.QTargetTrainerMixin` needs, which the extras `trl` and `lab` bring."""
TRL = ("accelerate", "datasets", "peft", "transformers", "trl", "yaml")
"""Modules of the extra `trl`."""


def is_installed(module: str) -> bool:
    return find_spec(module) is not None


def require(module: str, what: str, extra: str) -> None:
    """Raise QTargetError where a module that is in an extra of its own is missing. what: needs it, for the message."""
    if not is_installed(module):
        raise QTargetError(f"{what} needs {module}: pip install 'qtarget[{extra}]'")


def require_lab(what: str) -> None:
    """Raise QTargetError where a package of the extra `lab` is missing. what: needs them, for the message."""
    _require(what, LAB, "lab")


def require_trainer(what: str) -> None:
    """The same of what a Trainer needs."""
    _require(what, TRAINER, "trl")


def require_trl(what: str) -> None:
    """The same of the extra `trl`."""
    _require(what, TRL, "trl")


def _require(what: str, modules: tuple[str, ...], extra: str) -> None:
    if missing := [module for module in modules if not is_installed(module)]:
        raise QTargetError(f"{what} needs {', '.join(missing)}: pip install 'qtarget[{extra}]'")
