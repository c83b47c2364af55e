"""How designs look: one colour and one marker each, in every plot of the page, the picture and the lens.

The colours start from Paul Tol's vibrant set: told apart by colour-blind readers, with the markers' help, and readable
on white and on near-black.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GREY = "#8a8a8a"  # runs without training of their own
COLOURS = ("#0077bb", "#ee7733", "#009988", "#cc3311", "#2fa8dc", "#ee3377", "#aa4499", "#999933", "#7766cc", "#d9a521")
SYMBOLS = ("o", "s", "D", "^", "v")  # matplotlib's names; charts.js draws the same, in this order
DASHES = ("solid", "dashed", "dotted", "dashdot")
KNOWN = (
    *("sft", "label_smoothing", "dft", "target_sft", "kd", "one_minus_prior", "asft", "gift", "sft_kl", "prift_prob"),
    *(
        "inverse_prior",
        "confidence_penalty",
        "focal",
        "gem",
        "iw_sft",
        "kd_jsd",
        "psft",
        "rho1",
        "talr",
        "unlikelihood",
    ),
    *(
        "beyond_log",
        "beyond_log_threshold",
        "cayley_trans",
        "cft",
        "deft",
        "eaft",
        "focal_full",
        "idft",
        "iw_sft_token",
    ),
    *("kd_hybrid", "kd_reverse", "kd_support", "kd_temperature", "kd_truncated", "prift_mass", "profit"),
    *("sft_kl_reverse", "infosft", "chord_phi", "sed_sft", "skew_kl", "skew_kl_reverse", "se_kd"),
)
"""The designs that come with the package: each has its look wherever it is shown. Those compared most come first."""


@dataclass(frozen=True)
class Mark:
    """How one thing looks in every plot of a page: a group of runs, a design, or what else a curve stands for.

    index: no other mark of the page has it; the page shows and hides by it. symbol: counts into SYMBOLS. dash: of
    lines, one of DASHES.
    """

    index: int
    label: str
    colour: str
    symbol: int
    dash: str = "solid"


def look(index: int) -> tuple[str, int]:
    """The index-th colour and symbol; no two alike among the first 50."""
    turn, colour = divmod(index, len(COLOURS))  # each turn through the colours starts at another marker
    return COLOURS[colour], (colour + turn) % len(SYMBOLS)


def looks(designs: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Colour and symbol of every design; a design of your own takes the first look that none of the others has.

    >>> looks(["sft", "mine"])["sft"] == look(0)
    True
    """
    names = list(dict.fromkeys(designs))
    chosen = {name: look(KNOWN.index(name)) for name in names if name in KNOWN}
    for name in names:
        if name not in chosen:
            chosen[name] = next(free for index in range(10**6) if (free := look(index)) not in chosen.values())
    return chosen


def marks(pairs: Sequence[tuple[str, str]], first_index: int = 0) -> list[Mark]:
    """A mark for each (design, label): the design's colour and symbol, and a dash that tells its labels apart."""
    of_design = looks(design for design, _ in pairs)
    labels: dict[str, list[str]] = {}
    for design, label in pairs:
        own_labels = labels.setdefault(design, [])
        if label not in own_labels:
            own_labels.append(label)
    index = {pair: first_index + count for count, pair in enumerate(dict.fromkeys(pairs))}
    return [
        Mark(index[design, label], label, *of_design[design], DASHES[labels[design].index(label) % len(DASHES)])
        for design, label in pairs
    ]


def distinct(marks: Iterable[Mark]) -> tuple[Mark, ...]:
    """Each once, in their order."""
    return tuple(sorted(set(marks), key=lambda mark: mark.index))
