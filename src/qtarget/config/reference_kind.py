"""What a run asks of every kind of reference, and what kinds have in common. The kinds: config.references."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from qtarget import checks
from qtarget.choices import DTYPE_BYTES, ROLES, TAILS
from qtarget.config.composing import instantiate
from qtarget.errors import QTargetError
from qtarget.model.flaw import Flaw, NoFlaw
from qtarget.settings import Choice, Node, Nullable, Option, Text, Whole, setting

if TYPE_CHECKING:
    from qtarget.config.run_config import RunConfig, TrainerConfig
    from qtarget.math.target import Design
    from qtarget.model.cache import CachedRow, CachePlan
    from qtarget.model.frozen import Frozen
    from qtarget.model.policy import Policy

DTYPE = Choice(tuple(DTYPE_BYTES))
NAME = Nullable(Text())
TAIL = Choice(TAILS)
NO_FLAW = {"_target_": "qtarget.model.flaw.NoFlaw"}


class Models(Protocol):
    """What a run gives a kind to make its distribution of."""

    @property
    def policy(self) -> Policy:
        """The one that is trained."""

    @property
    def cache(self) -> CachePlan:
        """What is kept of the reference on disk; only for a `CachedReference`."""

    def still(self) -> Policy:
        """The model that the reference names, loaded for it alone, with its flaw."""

    def rows(self) -> Sequence[CachedRow]:
        """The training examples with a hint in front, of a reference that has a template for one."""

    def collate(self, rows: Any) -> Any:
        """Rows → a batch."""

    def copy(self) -> Policy:
        """The same with the adapter of the policy, if it has one."""


@dataclass(frozen=True)
class ReferenceConfig(Node):
    """What a run asks of every kind. One of your own subclasses this, or one of those below."""

    KIND: ClassVar[str] = ""
    """`kind` of its yaml, for those of `KINDS`."""
    ROLES: ClassVar[tuple[str, ...]] = ROLES
    """What it may stand for."""
    TAKES_A_FLAW: ClassVar[bool] = False
    RUNS_BESIDE: ClassVar[bool] = True
    """Whether a model reads every batch beside the policy."""
    HOLDS_A_COPY: ClassVar[bool] = True
    """Whether weights of its own are in memory while the policy trains."""

    role: str = field(default="prior", kw_only=True)
    flaw: Any = setting(
        NO_FLAW, Option("reference/flaw@references.ROLE.flaw", optional=True), "what is wrong on purpose"
    )
    dtype: str = setting("float32", DTYPE, "of its weights")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.made_flaw != NoFlaw() and not self.TAKES_A_FLAW:
            raise QTargetError(
                f"references.{self.role}.flaw is for a model of its own, kept apart from the policy, and this "
                f"{self.role} is {self.kind}: add reference@references.{self.role}=frozen or =cached, or take "
                f"reference/flaw@references.{self.role}.flaw=none"
            )

    @property
    def node_key(self) -> str:
        return f"references.{self.role}"

    @property
    def kind(self) -> str:
        """Its name in messages."""
        return self.KIND if _has_name(type(self)) else type(self).__name__

    @property
    def names_a_model(self) -> bool:
        """Whether it is a model of its own by name."""
        return False

    @property
    def tail_rule(self) -> str:
        """What the tokens outside the top k are taken to be, one of `TAILS`; matters where `held` is topk."""
        return "bucket"

    @property
    def hint_template(self) -> str | None:
        """What it reads in front of each row; None: it reads what the policy reads."""
        return None

    @property
    def made_flaw(self) -> Flaw:
        """Raises QTargetError for a value that is out of range."""
        made: Flaw = instantiate(self.flaw) if self.flaw else NoFlaw()  # records of earlier runs have none
        return made

    def model(self, policy: str) -> str | None:
        """The name of the model that this is, None where there is none. policy: the name of the model to train."""
        raise NotImplementedError

    def load(self, models: Models) -> Frozen:
        """What training and evaluation ask for its distribution at every token of a batch."""
        raise NotImplementedError

    def held(self, design: Design) -> str:
        """How much of its distribution a run will hold: label, topk or full."""
        return "full"

    def check_run(self, cfg: RunConfig) -> None:
        """Raise QTargetError where it doesn't go with the rest of a configuration."""

    def smaller(self, cfg: RunConfig) -> Iterator[str]:
        """What to set for the same distribution in less memory."""
        return iter(())

    def live(self, policy: str) -> ReferenceConfig:
        """The same for reading a few rows beside a checkpoint, without a cache or the policy's adapter."""
        return self

    def pinned(self, policy: str) -> Self:
        """The same beside a policy that is another model by now. policy: the one that training started from."""
        return self

    def container(self) -> dict[str, Any]:
        named = {"kind": self.KIND} if _has_name(type(self)) else {"_target_": checks.class_name(self)}
        return {**named, **super().container()}


@dataclass(frozen=True)
class NamedReference(ReferenceConfig):
    """A model of its own. name: None is, for the prior, the model that training starts from."""

    name: str | None = setting(None, NAME, "a folder, a run or a hub id; null: the model training starts from (prior)")
    topk: int | None = setting(None, Nullable(Whole(1)), "the so many likeliest tokens of it; null: all, exactly")
    tail: str = setting("bucket", TAIL, "what the tokens outside the top k are taken to be")

    @property
    def names_a_model(self) -> bool:
        return bool(self.name)

    @property
    def tail_rule(self) -> str:
        return self.tail

    def pinned(self, policy: str) -> Self:
        name = self.model(policy)
        return replace(self, name=name) if name else self

    def held(self, design: Design) -> str:
        return "topk" if self.topk else "full"

    def model(self, policy: str) -> str | None:
        return self.name or (policy if self.role == "prior" else None)


@dataclass(frozen=True)
class PlacedReference(ReferenceConfig):
    """A model with weights of its own beside the policy's. Where they lie changes no number."""

    shard: bool | None = setting(
        None, Choice((None, True, False)), "over the devices, as fsdp2 spreads the policy; null: where the policy is"
    )

    def is_sharded(self, trainer: TrainerConfig) -> bool:
        """Whether each device of a run holds a share of it."""
        return trainer.strategy == "fsdp2" and self.shard is not False

    def check_run(self, cfg: RunConfig) -> None:
        if self.shard and cfg.trainer.strategy != "fsdp2":
            raise QTargetError(
                f"{self.node_key}.shard=true spreads it over the devices of trainer.strategy=fsdp2, and this run has "
                f"trainer.strategy={cfg.trainer.strategy} on {cfg.trainer.processes} devices: set trainer.strategy="
                f"fsdp2 and trainer.devices, or leave {self.node_key}.shard null"
            )


def _has_name(kind: type[ReferenceConfig]) -> bool:
    """Whether a yaml names it by `kind`: those of the package, and none that subclasses them."""
    return "KIND" in vars(kind) and kind.__module__.startswith("qtarget.")
