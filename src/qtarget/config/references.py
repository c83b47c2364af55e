"""The kinds of a reference, as they are configured: references.prior, references.teacher, references.old.

A kind is one class and one yaml in conf/reference. Whatever a run asks of a kind is a method or a constant of the
class. The yaml of a kind of the user's own names the class by `_target_`. What needs torch is imported where a model
is: a configuration is read without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from qtarget import checks
from qtarget.choices import DETAILS_ON_DISK, DTYPE_BYTES, MOST_DRAWS, ROLES, SAMPLED
from qtarget.config.composing import located
from qtarget.config.reference_kind import Models, NamedReference, PlacedReference, ReferenceConfig
from qtarget.data.hints import DEFAULT, check_template
from qtarget.errors import QTargetError
from qtarget.settings import FLAG, Choice, Nullable, Text, Whole, setting

if TYPE_CHECKING:
    from qtarget.config.run_config import RunConfig
    from qtarget.math.target import Design
    from qtarget.model.cached_scores import Recipe
    from qtarget.model.frozen import Frozen

FULL_DETAIL = {"label": "label", "sampled": SAMPLED, "topk": "topk", "hidden": "full"}
"""What a cache keeps → what a design may look at."""


@dataclass(frozen=True)
class FrozenReference(NamedReference, PlacedReference):
    """A frozen copy that runs beside the policy."""

    KIND: ClassVar[str] = "frozen"
    TAKES_A_FLAW: ClassVar[bool] = True

    offload: bool = setting(
        False, FLAG, "its layers lie in the machine's memory and visit the device one by one: less memory, slower"
    )

    def load(self, models: Models) -> Frozen:
        from qtarget.model.frozen import FrozenModel

        return FrozenModel(models.still(), self.topk, self.tail)

    def smaller(self, cfg: RunConfig) -> Iterator[str]:
        yield f"reference@{self.node_key}=cached, which keeps no second model (now frozen)"
        if not self.offload:
            yield f"or {self.node_key}.offload=true, which keeps its layers in the machine's memory"
        if self.role == "prior" and cfg.model.adapter and not self.names_a_model:
            yield "or reference@references.prior=adapter_off, which shares the policy's weights"


@dataclass(frozen=True)
class PrivilegedReference(FrozenReference):
    """A frozen model that reads each row with a hint in front: a teacher without a second model."""

    KIND: ClassVar[str] = "privileged"
    ROLES: ClassVar[tuple[str, ...]] = ("teacher",)

    hint: str = setting(
        DEFAULT, Text(), "read before a row's first user message; {hint}, {answer} and {completion} are the row's"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_template(f"{self.node_key}.hint", self.hint)

    @property
    def hint_template(self) -> str | None:
        return self.hint

    def model(self, policy: str) -> str | None:
        return self.name or policy

    def load(self, models: Models) -> Frozen:
        from qtarget.model.privileged import Privileged

        return Privileged(models.still(), models.rows(), models.collate, self.topk, self.tail)


@dataclass(frozen=True)
class CachedReference(NamedReference):
    """What a frozen model says of every supervised token: scored once, kept on disk, shared by all runs on the rows."""

    KIND: ClassVar[str] = "cached"
    ROLES: ClassVar[tuple[str, ...]] = ("prior", "teacher")
    TAKES_A_FLAW: ClassVar[bool] = True
    RUNS_BESIDE: ClassVar[bool] = False
    HOLDS_A_COPY: ClassVar[bool] = False

    topk: int = setting(64, Whole(1), "of detail=topk: how many of the likeliest tokens")
    detail: str | None = setting(
        None, Choice((None, *DETAILS_ON_DISK)), "what is kept; null: the least that makes no difference to the target"
    )
    draws: int = setting(MOST_DRAWS, Whole(1, MOST_DRAWS), "of detail=sampled: draws a token, which are independent")
    seed: int = setting(0, Whole(0), "of detail=sampled: of the draws")
    store_dtype: str | None = setting(
        None,
        Choice((None, *DTYPE_BYTES)),
        "of hidden states on disk; null: of the products, which loses nothing",
    )
    folder: str | None = setting(None, Nullable(Text("a folder")), "holds the caches; null: below QTARGET_CACHE")
    hint: str | None = setting(None, Nullable(Text()), "of a teacher: read in front of each row, as of kind privileged")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hint is not None:
            check_template(f"{self.node_key}.hint", self.hint)
        if self.hint and self.role != "teacher":
            raise QTargetError(
                f"{self.node_key}.hint is for a teacher, and drift is measured from this prior: set "
                "reference@references.teacher=cached references.teacher.hint=…, whose name may stay null: the model "
                "that training starts from"
            )

    @property
    def hint_template(self) -> str | None:
        return self.hint

    def model(self, policy: str) -> str | None:
        return self.name or (policy if self.hint else super().model(policy))

    def kept(self, design: Design) -> str:
        """How much is kept: as configured, or the least that makes no difference to the design."""
        from qtarget.math.target import needs, wants_support

        if self.detail:
            return self.detail
        if needs(design).get(self.role) == "label":
            return "label"
        return "topk" if wants_support(design) else "hidden"

    def recipe(self, detail: str, precision: str, exact: str) -> Recipe:
        """exact: the dtype in which nothing of hidden states is lost."""
        from qtarget.model.cached_scores import Recipe

        return Recipe(detail, self.topk, self.store_dtype or exact, precision, self.draws, self.seed)

    def load(self, models: Models) -> Frozen:
        from qtarget.model.cache import Cached

        return Cached(models.cache, self.tail)

    def live(self, policy: str) -> FrozenReference:
        plain = _frozen(self, policy, self.topk if self.detail == "topk" else None)
        if not self.hint:
            return plain
        return PrivilegedReference(**{one.name: getattr(plain, one.name) for one in fields(plain)}, hint=self.hint)

    def held(self, design: Design) -> str:
        return FULL_DETAIL[self.kept(design)]


@dataclass(frozen=True)
class AdapterOffReference(NamedReference):
    """The policy's own weights with its adapter switched off: a prior without a second copy."""

    KIND: ClassVar[str] = "adapter_off"
    ROLES: ClassVar[tuple[str, ...]] = ("prior",)
    HOLDS_A_COPY: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.name:
            raise QTargetError(f"{self.node_key}=adapter_off is the policy itself and takes no name, got {self.name!r}")
        if self.topk is not None:
            raise QTargetError(f"{self.node_key}=adapter_off holds the whole distribution: leave its topk null")
        super().__post_init__()

    def model(self, policy: str) -> str | None:
        return policy

    def load(self, models: Models) -> Frozen:
        from qtarget.model.frozen import AdapterOff

        return AdapterOff(models.policy)

    def check_run(self, cfg: RunConfig) -> None:
        if not cfg.model.adapter:
            raise QTargetError(
                f"{self.node_key}=adapter_off is the policy with its adapter switched off, and this policy has none: "
                f"add model/adapter=lora, or take reference@{self.node_key}=frozen, a copy of the weights"
            )

    def live(self, policy: str) -> FrozenReference:
        return _frozen(self, policy, None)


@dataclass(frozen=True)
class NoReference(NamedReference):
    """None: targets that need one are refused."""

    KIND: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        if self.name:
            raise QTargetError(
                f"{self.node_key}.name is given but no {self.role}: add reference@{self.node_key}=frozen"
            )
        super().__post_init__()

    def model(self, policy: str) -> str | None:
        return None


@dataclass(frozen=True)
class SnapshotReference(PlacedReference):
    """The policy as it was, copied anew every so many optimizer steps."""

    KIND: ClassVar[str] = "snapshot"
    ROLES: ClassVar[tuple[str, ...]] = ("old",)

    every: int = setting(8, Whole(1), "optimizer steps between copies")

    def model(self, policy: str) -> str | None:
        return policy

    def load(self, models: Models) -> Frozen:
        from qtarget.model.frozen import Snapshot

        return Snapshot(models.copy(), self.every)


def _frozen(node: NamedReference, policy: str, topk: int | None) -> FrozenReference:
    """The model of a reference of another kind, run beside the policy."""
    name = node.model(policy)
    return FrozenReference(role=node.role, name=name, dtype=node.dtype, topk=topk, tail=node.tail, flaw=node.flaw)


KINDS: dict[str, type[ReferenceConfig]] = {
    kind.KIND: kind
    for kind in (
        FrozenReference,
        PrivilegedReference,
        CachedReference,
        AdapterOffReference,
        SnapshotReference,
        NoReference,
    )
}
"""Those that a yaml names by `kind`; a kind that subclasses one of them is named by `_target_`."""
KINDS_OF = {role: tuple(name for name, kind in KINDS.items() if role in kind.ROLES) for role in ROLES}


def read_references(node: Any) -> dict[str, ReferenceConfig]:
    """By role, from the composed node `references`."""
    if not isinstance(node, Mapping):
        raise QTargetError(f"references={node} sets a value: write reference@references.ROLE=OPTION")
    for role in node:
        checks.choice("the role of a reference", role, ROLES)
    return {role: _read(role, node.get(role)) for role in ROLES}


def _read(role: str, node: Any) -> ReferenceConfig:
    if node is None:
        return NoReference(role=role)
    if not isinstance(node, Mapping):
        raise QTargetError(
            f"references.{role}={node} sets a value, not a reference: write reference@references.{role}={node}"
        )
    if "_target_" in node:
        return _own(role, node["_target_"]).read(_without(node, "_target_"), role=role)
    checks.choice(f"references.{role}", node.get("kind"), KINDS_OF[role])
    return KINDS[node["kind"]].read(_without(node, "kind"), role=role)


def _own(role: str, path: Any) -> type[ReferenceConfig]:
    """The class of a kind that is named by `_target_`."""
    kind = located(f"references.{role}._target_", path)
    if not isinstance(kind, type) or not issubclass(kind, ReferenceConfig):
        raise QTargetError(
            f"references.{role}._target_={path} is no kind of reference: name a frozen dataclass that subclasses "
            f"qtarget.config.references.ReferenceConfig, or take reference@references.{role}=KIND with one of "
            f"{', '.join(KINDS_OF[role])}"
        )
    if kind in KINDS.values():
        raise QTargetError(f"references.{role}._target_={path} is a kind with a name: write kind: {kind.KIND} for it")
    checks.choice(f"the role of {path}", role, kind.ROLES)
    return kind


def _without(node: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key != name}
