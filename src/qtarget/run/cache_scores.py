"""`qtarget cache detail=…`: score a data set once, before the runs that share it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from qtarget import checks
from qtarget.choices import DETAILS_ON_DISK
from qtarget.config.composing import compose_config, to_yaml
from qtarget.config.run_config import RunConfig
from qtarget.parallel import is_rank_zero
from qtarget.run import build, ranks
from qtarget.run.caching import build_missing, described, role_of
from qtarget.run.fit import prepare_process
from qtarget.run.plan import Plan, make_plan

OWN = ("detail", "role")
ROLES = ("prior", "teacher")


def score(overrides: Sequence[str], *, shows: bool) -> int:
    """overrides: of `qtarget train`, and role and detail. shows: print the configuration, score nothing."""
    own, overrides = _split(overrides)
    role, detail = own.get("role", "prior"), own.get("detail", "hidden")
    checks.choice("role", role, ROLES)
    checks.choice("detail", detail, DETAILS_ON_DISK)
    chosen = [f"reference@references.{role}=cached", f"references.{role}.detail={detail}"]
    composed = compose_config("train", [*chosen, *overrides])
    if shows:
        print(to_yaml(composed), end="")
        return 0
    cfg = RunConfig.read(composed)
    _on_all_devices(cfg, role)
    named = any(override.startswith("target=") for override in overrides)
    print(f"next: {shlex.join(['qtarget', 'train', *['target=NAME'] * (not named), *chosen, *overrides])}")
    return 0


def _split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """This command's own arguments, and Hydra's."""
    pairs = [argument.partition("=") for argument in arguments]
    own = {key: value for key, _, value in pairs if key in OWN}
    return own, [argument for argument in arguments if argument.partition("=")[0] not in OWN]


def _on_all_devices(cfg: RunConfig, role: str) -> None:
    """In this process, or in as many as trainer.devices says, which share the rows."""
    ranks.check_started(cfg.trainer)
    if cfg.trainer.processes == 1 or ranks.environment():
        ranks.connect()
        _build_role(cfg, role)
        return
    ranks.check_devices(cfg.trainer)
    ranks.start(cfg.trainer.devices, _build_role, cfg, role)


def _build_role(cfg: RunConfig, role: str) -> None:
    prepare_process(cfg.seed)
    no_benchmarks = replace(cfg.eval, benchmarks={})  # nothing is
    plan = make_plan(replace(cfg, eval=no_benchmarks), cached=(role,))
    if is_rank_zero():
        _describe(plan)
    build_missing(plan.caches, plan.references, lambda name: build.scoring_model(plan, name))


def _describe(plan: Plan) -> None:
    for name, cache in plan.caches.items():
        print(described(name, cache, plan.references[role_of(name)]))
    if all(cache.is_built for cache in plan.caches.values()):
        print("nothing to score: every run on these rows reads these files")
