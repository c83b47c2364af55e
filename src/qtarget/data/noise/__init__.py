"""Demonstrations made wrong on purpose, with the truth kept per token: one small file per kind of mistake."""

from qtarget.data.noise.answers import SwappedDemonstration, WrongAnswer
from qtarget.data.noise.base import Noise, NoNoise, Several
from qtarget.data.noise.random_tokens import RandomToken
from qtarget.data.noise.wording import ParaphraseStyle, SpuriousMarker, Truncated, Typo

__all__ = [
    "NoNoise",
    "Noise",
    "ParaphraseStyle",
    "RandomToken",
    "Several",
    "SpuriousMarker",
    "SwappedDemonstration",
    "Truncated",
    "Typo",
    "WrongAnswer",
]
