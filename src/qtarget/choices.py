"""Words that the mathematics and the configuration share: reading a configuration imports no torch."""

from __future__ import annotations

ROLES = ("prior", "teacher", "old")
"""What a frozen distribution can be to a design: where training started, another model, the policy of a while ago."""
TAILS = ("bucket", "renormalised", "uniform")
"""What the mass outside a top k is taken to be.

bucket: shared out as the policy shares its own (cross-entropy over k + 1 cells; what TRL does by default).
renormalised: none; the k are scaled up to 1: the policy learns that nothing else can happen (DistillKit's default).
uniform: the same for every other token.
"""
SAMPLED = "sampled"
"""The detail of a reference by draws: enough for designs whose gradient is linear in it, and for no other."""
DETAILS_ON_DISK = ("label", SAMPLED, "topk", "hidden")
"""How much a cache keeps of a distribution, thinnest first."""
MOST_DRAWS = 64
"""Of a token's position, with SAMPLED: a count has 6 bits."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
"""What weights may be, by torch's names, and the bytes of a number."""
