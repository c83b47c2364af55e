"""The kinds of a reference, as they are configured: references.prior, references.teacher, references.old."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from qtarget import checks
from qtarget.config.composing import instantiate
from qtarget.config.settings import Choice, Node, Nullable, Part, Text, Whole, setting
from qtarget.errors import QTargetError
from qtarget.math.reference import TAILS
from qtarget.math.target import Design, needs, wants_support
from qtarget.math.tokens import ROLES
from qtarget.model.cached_scores import KEPT
from qtarget.model.flaw import Flaw, NoFlaw
from qtarget.model.provide import DTYPES

KINDS_OF = {
    "prior": ("frozen", "cached", "adapter_off", "none"),
    "teacher": ("frozen", "cached", "none"),
    "old": ("snapshot", "frozen", "none"),
}
DTYPE = Choice(tuple(DTYPES))
NAME = Nullable(Text())
TAIL = Choice(TAILS)
FULL_DETAIL = {"label": "label", "topk": "topk", "hidden": "full"}
"""What a cache keeps → what a design may look at."""
NO_FLAW = {"_target_": "qtarget.model.flaw.NoFlaw"}


@dataclass(frozen=True)
class ReferenceConfig(Node):
    """What every kind has."""

    KIND: ClassVar[str] = ""
    TAKES_A_FLAW: ClassVar[bool] = False

    role: str = field(default="prior", kw_only=True)
    flaw: Any = setting(NO_FLAW, Part("a part, reference/flaw@references.ROLE.flaw=OPTION"), "what is wrong on purpose")
    dtype: str = setting("float32", DTYPE, "of its weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.made_flaw != NoFlaw() and not self.TAKES_A_FLAW:
            raise QTargetError(
                f"references.{self.role}.flaw is for a model of its own, kept apart from the policy, and this "
                f"{self.role} is {self.KIND}: add reference@references.{self.role}=frozen or =cached, or take "
                f"reference/flaw@references.{self.role}.flaw=none"
            )

    @property
    def place(self) -> str:
        return f"references.{self.role}"

    @property
    def names_a_model(self) -> bool:
        """Whether it is a model of its own by name."""
        return False

    @property
    def made_flaw(self) -> Flaw:
        """Raises QTargetError for a value that is out of range."""
        made: Flaw = instantiate(self.flaw) if self.flaw else NoFlaw()  # records of earlier runs have none
        return made

    def model(self, policy: str) -> str | None:
        """The name of the model that this is, None where there is none. policy: the name of the model to train."""
        raise NotImplementedError

    def held(self, design: Design) -> str:
        """How much of its distribution a run will hold: label, topk or full."""
        return "full"

    def container(self) -> dict[str, Any]:
        return {"kind": self.KIND, **super().container()}


@dataclass(frozen=True)
class NamedReference(ReferenceConfig):
    """A model of its own. name: None is, for the prior, the model that training starts from."""

    name: str | None = setting(None, NAME, "a folder, a run or a hub id; null: the model training starts from (prior)")
    topk: int | None = setting(None, Nullable(Whole(1)), "the so many likeliest tokens of it; null: all, exactly")
    tail: str = setting("bucket", TAIL, "what the tokens outside the top k are taken to be")

    @property
    def names_a_model(self) -> bool:
        return bool(self.name)

    def held(self, design: Design) -> str:
        return "topk" if self.topk else "full"

    def model(self, policy: str) -> str | None:
        return self.name or (policy if self.role == "prior" else None)


@dataclass(frozen=True)
class FrozenReference(NamedReference):
    """A frozen copy that runs beside the policy."""

    KIND: ClassVar[str] = "frozen"
    TAKES_A_FLAW: ClassVar[bool] = True


@dataclass(frozen=True)
class CachedReference(NamedReference):
    """What a frozen model says of every supervised token: scored once, kept on disk, shared by all runs on the rows."""

    KIND: ClassVar[str] = "cached"
    TAKES_A_FLAW: ClassVar[bool] = True

    topk: int = setting(64, Whole(1), "of detail=topk: how many of the likeliest tokens")
    detail: str | None = setting(
        None, Choice((None, *KEPT)), "what is kept; null: the least that makes no difference to the target"
    )
    store_dtype: str | None = setting(
        None, Choice((None, *DTYPES)), "of hidden states on disk; null: that of the products, so that nothing is lost"
    )
    folder: str | None = setting(None, Nullable(Text("a folder")), "holds the caches; null: below QTARGET_CACHE")

    def kept(self, design: Design) -> str:
        """How much is kept: as configured, or the least that makes no difference to the design."""
        if self.detail:
            return self.detail
        if needs(design).get(self.role) == "label":
            return "label"
        return "topk" if wants_support(design) else "hidden"

    def held(self, design: Design) -> str:
        return FULL_DETAIL[self.kept(design)]


@dataclass(frozen=True)
class AdapterOffReference(NamedReference):
    """The policy's own weights with its adapter switched off: a prior without a second copy."""

    KIND: ClassVar[str] = "adapter_off"

    def __post_init__(self) -> None:
        if self.name:
            raise QTargetError(f"{self.place}=adapter_off is the policy itself and takes no name, got {self.name!r}")
        if self.topk is not None:
            raise QTargetError(f"{self.place}=adapter_off holds the whole distribution: leave its topk null")
        super().__post_init__()

    def model(self, policy: str) -> str | None:
        return policy


@dataclass(frozen=True)
class NoReference(NamedReference):
    """None: targets that need one are refused."""

    KIND: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        if self.name:
            raise QTargetError(f"{self.place}.name is given but no {self.role}: add reference@{self.place}=frozen")
        super().__post_init__()

    def model(self, policy: str) -> str | None:
        return None


@dataclass(frozen=True)
class SnapshotReference(ReferenceConfig):
    """The policy as it was, copied anew every so many optimizer steps."""

    KIND: ClassVar[str] = "snapshot"

    every: int = setting(8, Whole(1), "optimizer steps between copies")

    def model(self, policy: str) -> str | None:
        return policy


KINDS: dict[str, type[ReferenceConfig]] = {
    kind.KIND: kind for kind in (FrozenReference, CachedReference, AdapterOffReference, SnapshotReference, NoReference)
}


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
    checks.choice(f"references.{role}", node.get("kind"), KINDS_OF[role])
    return KINDS[node["kind"]].read({key: value for key, value in node.items() if key != "kind"}, role=role)
