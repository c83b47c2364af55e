"""Demonstrations prepared for training and evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from qtarget import checks
from qtarget.data.chat import SUPERVISED, ChatFormat
from qtarget.data.encoding import EncodedRows
from qtarget.data.example import Demonstration, Example, lengths, roles
from qtarget.data.limits import limited
from qtarget.data.noise import Noise, NoNoise
from qtarget.data.noise.base import writes_tokens
from qtarget.data.overlap import CONTAMINATIONS, apart
from qtarget.data.packing import Packs, pack
from qtarget.data.sources.conversation import listed
from qtarget.data.sources.data_files import Files
from qtarget.data.sources.jsonl import Jsonl
from qtarget.data.sources.loading import is_file_name
from qtarget.data.sources.source import Sharing, Source, read
from qtarget.data.storage import InMemory, Storage
from qtarget.data.tokenise import is_taught
from qtarget.errors import QTargetError
from qtarget.settings import Checked, Choice, Nullable, Number, Option, Part, Whole, setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qtarget.data.stream import Stream

UNREAD = "unread_"
FEW = 20
"""Held-out rows, below which a run is warned of."""
TRUNCATIONS = ("error", "drop", "cut")
KEPT = ("auto", True, False)


@dataclass(frozen=True)
class DataConfig(Checked):
    """Which demonstrations, how many, how noisy.

    rows: training demonstrations, to which noise is applied. reserve_rows: clean ones from a split of their own, added
    unspoilt. heldout_rows: clean ones for evaluation; None: all there are. Of a share of the training rows, those that
    are not evaluated are trained on. heldout_source: where they come from, a source or the name of a file, which is
    read as the source is; None: from the source. contamination, of training rows that answer a held-out prompt:
    "error", "drop" the row, or "allow" it. truncation of rows longer than max_length (None: the model's context):
    "error", "drop" the row, or "cut" its end; a row that a cut leaves nothing of a reply is dropped. supervise: "all"
    assistant turns, or the "last". prompt_weight: what multiplies the loss of the tokens before a taught reply, in
    training rows alone.
    packing: training rows of up to so many tokens hold several demonstrations that don't see each other;
    None: one each. keep: whether what was prepared is kept on disk for other runs on the same data ("auto": where it is
    large); workers: how many processes prepare it (None: one a core). Neither changes a number.
    """

    NODE_KEY: ClassVar[str] = "data"
    source: Source = setting(MISSING, Option("data/source"), "where the rows come from")
    rows: int | None = setting(
        MISSING, Nullable(Whole(0)), "training rows, which the noise spoils; null: all there are"
    )
    reserve_rows: int = setting(0, Nullable(Whole(0)), "clean rows of a split of their own, added unspoilt")
    heldout_rows: int | None = setting(400, Nullable(Whole(0)), "clean rows for evaluation; null: all there are")
    noise: Noise = setting(NoNoise, Option("data/noise"), "what is made wrong in the training rows")
    max_length: int | None = setting(
        None, Nullable(Whole(1)), "tokens that a row may have; null: the context of the model"
    )
    truncation: str = setting("error", Choice(TRUNCATIONS), "what becomes of longer rows")
    packing: int | None = setting(
        None, Nullable(Whole(1)), "tokens of a training row that holds several demonstrations; null: one each"
    )
    heldout_source: Source | str | None = setting(
        None,
        Part("a file, or a part, +data/source@data.heldout_source=OPTION, or null"),
        "where held-out rows come from; null: the source",
    )
    contamination: str = setting(
        "error", Choice(CONTAMINATIONS), "what becomes of training rows that answer a held-out prompt"
    )
    supervise: str = setting(
        "all", Choice(SUPERVISED), "the turns of the assistant that are taught: all, or the last one"
    )
    prompt_weight: float = setting(
        0.0, Number(0), "what multiplies the loss of the tokens of prompts, in training rows alone; 0: context"
    )
    keep: str | bool = setting(
        "auto", Choice(KEPT), "prepared rows stay in QTARGET_CACHE for other runs; auto: where there are many"
    )
    workers: int | None = setting(None, Nullable(Whole(1)), "processes that prepare many rows; null: one a core")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.implements("data.source", self.source, Source)
        if self.prompt_weight and writes_tokens(self.noise):
            raise QTargetError(
                "data.prompt_weight teaches prompts, and this data.noise writes random tokens among all that is "
                "taught: take a noise that changes words (data/noise=wrong_answer), or leave data.prompt_weight at 0"
            )
        if isinstance(self.heldout_source, str):
            _check_file("data.heldout_source", self.heldout_source)
        elif self.heldout_source is not None:
            checks.implements("data.heldout_source", self.heldout_source, Source)

    @property
    def evaluated(self) -> Source:
        """Where held-out rows come from."""
        if not isinstance(self.heldout_source, str):
            return self.heldout_source or self.source
        if isinstance(self.source, Files | Jsonl):
            return replace(self.source, heldout=self.heldout_source, heldout_share=0.0)
        return Files(self.heldout_source, train=None, heldout=self.heldout_source)

    def limit(self, context: int) -> int:
        """Tokens that a row may have, of a model with so many positions."""
        return min(self.max_length or context, context)

    @property
    def wants_none_heldout(self) -> bool:
        """Whether the configuration asks for no held-out rows: with heldout_rows=0, or a share of 0."""
        shares = self.heldout_source is None and isinstance(self.source, Sharing)
        shares = shares and not getattr(self.source, "streaming", False)  # which holds out its first rows
        return self.heldout_rows == 0 or (shares and not self.source.share and not self.source.heldout)  # type: ignore[attr-defined]


def _check_file(key: str, name: str) -> None:
    if not is_file_name(name):
        raise QTargetError(
            f"{key}={name} is no name of a file, which has a suffix or a slash: write {key}=val.jsonl, or, for an "
            f"option of data/source, +data/source@{key}={name}"
        )


@dataclass(frozen=True)
class Prepared:
    """Tokenised demonstrations, and what happened to them on the way.

    rows: the training ones as they go into batches, each by itself or packed. counts, of rows by name: asked = train +
    dropped_too_long + dropped_contaminated + dropped_untaught, which have no reply of a weight above 0, and likewise
    heldout_asked = heldout + heldout_dropped_too_long + heldout_untaught; heldout_share_of: the rows that held-out ones
    are a share of; what a source left out stands under source_…, rows with a key that nobody reads under unread_….
    A row may be several examples: heldout_of says which of heldout_rows a held-out example is of. described: what the
    source takes its rows to be.
    notes: what reaches the tokens otherwise than it stands in the rows. roles: messages of the training rows by role.
    train_rows, train_of: the training rows, and which of them a training example is of; of stored ones nothing.
    stream: where training rows are read while training goes on; then train and rows are its first few examples.
    """

    train: Sequence[Example]
    heldout: Sequence[Example]
    heldout_rows: Sequence[Demonstration]
    counts: dict[str, int]
    rows: Sequence[Example] | Packs
    described: str = ""
    heldout_of: Sequence[int] = ()
    notes: Sequence[str] = ()
    roles: Mapping[str, int] = field(default_factory=dict)
    train_rows: Sequence[Demonstration] = ()
    train_of: Sequence[int] = ()
    stream: Stream | None = None

    @property
    def few_in_words(self) -> str:
        """That the held-out rows are few; empty where they aren't."""
        count = self.counts["heldout"]
        return f"; {count} held-out rows are few: differences between runs may be chance" if 0 < count < FEW else ""

    @property
    def dropped_in_words(self) -> str:
        """What became of rows that are not trained or judged whole or as they stand, in words; empty where all are."""
        words = {
            "dropped_too_long": "left out as too long",
            "dropped_contaminated": "left out as held out too",
            "dropped_untaught": "left out as nothing in them has a weight above 0",
            "cut": "cut",
            "heldout_dropped_too_long": "held-out rows left out as too long",
            "heldout_untaught": "held-out rows left out as nothing in them has a weight above 0",
            "heldout_cut": "held-out rows cut",
        }
        dropped = (f"{self.counts[name]} {text}" for name, text in words.items() if self.counts.get(name))
        return "".join(f"; {text}" for text in (*dropped, *self.notes)) + self._unread

    @property
    def _unread(self) -> str:
        """Keys that nobody reads, in words."""
        names = [name for name in self.counts if name.startswith(UNREAD)]
        counted = [f"{name.removeprefix(UNREAD)} ({self.counts[name]} rows)" for name in names]
        return f"; keys not read: {listed(counted)}" if counted else ""


def prepare(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, context: int, storage: Storage | None = None
) -> Prepared:
    """Read, spoil, tokenise and measure. Everything a row can be wrong about is said here, before a model is loaded.

    Rows keep their order, and every one that doesn't reach the end is counted by name. storage: where the examples are;
    None: in memory.
    """
    chat, limit, storage = ChatFormat(tokenizer, config.supervise), config.limit(context), storage or InMemory()
    taught = replace(chat, prompt_weight=config.prompt_weight)
    of_share = config.heldout_rows if config.heldout_source is None else 0
    given, from_source = read(config.source, "train", config.rows, of_share)
    reserve, _ = read(config.source, "reserve", config.reserve_rows)
    held_out, beside = read(config.evaluated, "heldout", config.heldout_rows, config.heldout_rows)
    unread = Counter(key for row in (*given, *reserve, *held_out) for key in row.unread)
    of_all, of_heldout = len(given) + len(reserve), len(held_out)
    given, reserve, heldout = (
        [row for row in rows if is_taught(row, config.supervise)] for rows in (given, reserve, held_out)
    )
    clean, clean_reserve = (apart(rows, heldout, config.contamination) for rows in (given, reserve))
    noisy = config.noise(clean)
    encoded = storage.encode([*noisy, *clean_reserve], taught)
    train = limited(_with_noise(config.noise, encoded, len(noisy), chat), limit, config.truncation)
    examples, of_train = storage.keep("train", train)
    held = limited(storage.encode(heldout, chat), limit, config.truncation)
    heldout_examples, of = storage.keep("heldout", held)
    contaminated = len(given) + len(reserve) - len(clean) - len(clean_reserve)
    counts = {
        "asked": of_all,
        "train": len(train.kept),
        "noisy": train.noisy,
        "noisy_tokens": train.noisy_tokens,
        "reserve": len(clean_reserve),
        "dropped_too_long": train.dropped,
        "dropped_contaminated": contaminated,
        "dropped_untaught": of_all - len(given) - len(reserve),
        "cut": train.cut,
        "heldout_asked": of_heldout,
        "heldout": len(held.kept),
        "heldout_share_of": of_heldout + beside.get("other_split", 0),
        "heldout_dropped_too_long": held.dropped,
        "heldout_untaught": of_heldout - len(heldout),
        "heldout_cut": held.cut,
        **{f"source_{reason}": rows for reason, rows in from_source.items()},
        **{f"{UNREAD}{key}": rows for key, rows in sorted(unread.items())},
    }
    rows = examples if config.packing is None else pack(examples, _pack_length(config.packing, examples, limit))
    described = getattr(config.source, "described", "")
    notes = chat.notes([*train.rows, *held.rows])
    return Prepared(
        train=examples,
        heldout=heldout_examples,
        heldout_rows=held.rows,
        counts=counts,
        rows=rows,
        described=described,
        heldout_of=of,
        notes=notes,
        roles=roles(train.rows),
        train_rows=train.rows,
        train_of=of_train,
    )


def check_heldout(config: DataConfig, prepared: Prepared) -> None:
    """Raise QTargetError where no row is held out and that was not asked for."""
    if prepared.heldout or config.wants_none_heldout:
        return
    raise QTargetError(
        f"no row is held out of {prepared.described or 'the data'}{prepared.dropped_in_words}: name a file or a split "
        "to evaluate on with data.source.heldout, or a file with data.heldout_source; data.heldout_rows=0 trains "
        "without any"
    )


def encoded(
    rows: Sequence[Demonstration], tokenizer: PreTrainedTokenizerBase, limit: int, truncation: str
) -> list[Example]:
    """Rows as they are, as tokens; of those longer than `limit` what `truncation` says: "error", "drop" or "cut"."""
    storage = InMemory()
    kept = limited(storage.encode(rows, ChatFormat(tokenizer)), limit, truncation)
    return [example for example, _ in kept.examples()]


def _pack_length(packing: int, examples: Sequence[Example], context: int) -> int:
    longest = max(lengths(examples), default=0)
    if not longest <= packing <= context:
        raise QTargetError(
            f"data.packing must lie between the longest row ({longest} tokens) and the longest allowed ({context}, "
            f"from the model's context or data.max_length), got {packing}"
        )
    return packing


def _with_noise(noise: Noise, encoded: EncodedRows, count: int, chat: ChatFormat) -> EncodedRows:
    """The same, where the examples of the first `count` rows have other tokens."""
    if not writes_tokens(noise):
        return encoded
    end = encoded.starts[count]
    spoilt = noise.tokens(encoded.examples[:end], chat)
    return replace(encoded, examples=[*spoilt, *encoded.examples[end:]])
