"""Every objective as its paper writes it, for autograd: nothing here is ours but the transcription.

Each function maps (log p [N, V] with a graph, World) to the loss per token [N]; keywords are the paper's symbols, their
defaults those of the shipped yaml. `sg` is the stop-gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from worlds import World

Objective = Callable[..., Tensor]


def sg(tensor: Tensor) -> Tensor:
    return tensor.detach()


def at_label(logp: Tensor, w: World) -> Tensor:
    return logp[torch.arange(len(w.labels)), w.labels]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) from log-probabilities; both full rows."""
    return (p.exp() * (p - q)).sum(-1)


def sft(logp: Tensor, w: World) -> Tensor:
    return -at_label(logp, w)


def label_smoothing(logp: Tensor, w: World, epsilon: float = 0.1) -> Tensor:
    return (1 - epsilon) * sft(logp, w) - epsilon * logp.mean(-1)


def dft(logp: Tensor, w: World) -> Tensor:
    return sg(at_label(logp, w).exp()) * sft(logp, w)


def beyond_log(logp: Tensor, w: World, alpha: float = 0.5) -> Tensor:
    return (1 - at_label(logp, w).exp() ** alpha) / alpha


def beyond_log_threshold(logp: Tensor, w: World, q: float = 0.2, inner: Objective = sft) -> Tensor:
    return sg(at_label(logp, w).exp() >= q) * inner(logp, w)


def one_minus_p(logp: Tensor, w: World) -> Tensor:
    return 1 - at_label(logp, w).exp()


def profit(logp: Tensor, w: World, tau: float = 0.1) -> Tensor:
    return sg(at_label(logp, w).exp() > tau) * sft(logp, w)


def eaft(logp: Tensor, w: World, k: int = 20, norm: float = 3.0, alpha: float = 1.0) -> Tensor:
    top = sg(logp).sort(-1, descending=True).values[:, :k].softmax(-1)
    return (-(top * top.log()).sum(-1) / norm) ** alpha * sft(logp, w)


def iw_sft(logp: Tensor, w: World, temp: float = 1.0, low: float = 0.0, high: float = 16.0) -> Tensor:
    ratio = sg(at_label(logp, w)) - at_label(w.prior, w)
    weight = torch.empty_like(ratio)
    for row in w.sequence_ids.unique():
        weight[w.sequence_ids == row] = math.exp(temp * float(ratio[w.sequence_ids == row].mean()))
    return weight.clamp(low, high) * sft(logp, w)


def iw_sft_token(logp: Tensor, w: World, low: float = 0.2, high: float = 1.8) -> Tensor:
    return (sg(at_label(logp, w)).exp() / at_label(w.prior, w).exp()).clamp(low, high) * sft(logp, w)


def cft(logp: Tensor, w: World) -> Tensor:
    return w.critical * sft(logp, w)


def sft_kl(logp: Tensor, w: World, lam: float = 0.1) -> Tensor:
    return sft(logp, w) + lam * kl(w.prior, logp)


def sft_kl_reverse(logp: Tensor, w: World, lam: float = 0.1) -> Tensor:
    return sft(logp, w) + lam * kl(logp, w.prior)


def asft(logp: Tensor, w: World, lam: float = 0.1) -> Tensor:
    return dft(logp, w) + lam * kl(w.prior, logp)


def psft(logp: Tensor, w: World, clip_low: float = 0.2, clip_high: float = 0.28) -> Tensor:
    ratio = (at_label(logp, w) - at_label(w.old, w)).clamp(-20, 20).exp()
    return -torch.minimum(ratio, ratio.clamp(1 - clip_low, 1 + clip_high))


def gem(logp: Tensor, w: World, beta: float = 0.7, h: str = "linear") -> Tensor:
    label = at_label(logp, w)[:, None]
    rivals = sg((logp / beta).softmax(-1))
    if h == "logsigmoid":
        rivals = rivals * sg(torch.sigmoid(0.01 * (logp - label)))
    return -(rivals * (label - logp)).sum(-1)


def kd_ce(logp: Tensor, w: World) -> Tensor:
    return -(w.teacher.exp() * logp).sum(-1)


def kd(logp: Tensor, w: World, temperature: float = 1.0) -> Tensor:
    cooled = ((row / temperature).log_softmax(-1) for row in (w.teacher, logp))
    return temperature**2 * kl(*cooled)


def kd_hybrid(logp: Tensor, w: World, lam: float = 0.5) -> Tensor:
    return (1 - lam) * sft(logp, w) + lam * kd(logp, w)


def kd_reverse(logp: Tensor, w: World) -> Tensor:
    return kl(logp, w.teacher)


def kd_jsd(logp: Tensor, w: World, beta: float = 0.5) -> Tensor:
    m = ((1 - beta) * logp.exp() + beta * w.teacher.exp()).log()
    return beta * kl(w.teacher, m) + (1 - beta) * kl(logp, m)


def skew_kl(logp: Tensor, w: World, alpha: float = 0.1) -> Tensor:
    return kl(w.teacher, (alpha * w.teacher.exp() + (1 - alpha) * logp.exp()).log())


def skew_kl_reverse(logp: Tensor, w: World, alpha: float = 0.1) -> Tensor:
    return kl(logp, (alpha * logp.exp() + (1 - alpha) * w.teacher.exp()).log())


def se_kd(logp: Tensor, w: World, k: float = 0.2) -> Tensor:
    entropy = sg(-(logp.exp() * logp).sum(-1)).tolist()
    mask = torch.zeros(len(entropy), dtype=torch.float64)
    for row in w.sequence_ids.unique().tolist():
        places = [place for place, one in enumerate(w.sequence_ids.tolist()) if one == row]
        chosen = sorted(places, key=lambda place: -entropy[place])[: max(1, round(k * len(places)))]
        mask[chosen] = 1.0
    return mask * kd(logp, w)


def kd_temperature(logp: Tensor, w: World) -> Tensor:
    return kd(logp, w, temperature=2.0)


def kept(w: World, k: int) -> tuple[Tensor, Tensor]:
    top = w.teacher.topk(k)
    return top.indices, top.values


def kd_support(logp: Tensor, w: World, k: int = 3) -> Tensor:
    ids, q = kept(w, k)
    return kl(q.log_softmax(-1), logp.gather(1, ids).log_softmax(-1))


def kd_truncated(logp: Tensor, w: World, k: int = 3) -> Tensor:
    ids, q = kept(w, k)
    return kl(q, logp.gather(1, ids))


def kd_renormalised(logp: Tensor, w: World, k: int = 3) -> Tensor:
    ids, q = kept(w, k)
    return kl(q.log_softmax(-1), logp.gather(1, ids))


def kd_bucket(logp: Tensor, w: World, k: int = 3) -> Tensor:
    """KL over the k tokens and one cell for all the others."""
    ids, q = kept(w, k)
    p = logp.gather(1, ids)
    cells = [torch.cat([x, torch.log1p(-x.exp().sum(-1, keepdim=True))], dim=-1) for x in (q, p)]
    return kl(*cells)


def kd_uniform(logp: Tensor, w: World, k: int = 3) -> Tensor:
    ids, q = kept(w, k)
    left = (1 - q.exp().sum(-1, keepdim=True)) / (logp.shape[1] - k)
    row = left.expand_as(logp).scatter(1, ids, q.exp())
    return -(row * logp).sum(-1)


def target_sft(logp: Tensor, w: World, eta: float = 0.5) -> Tensor:
    p = sg(at_label(logp, w).exp())
    guided = ((1 - eta) * sg(logp) + eta * w.teacher).softmax(-1)
    return p * sft(logp, w) - (1 - p) * (guided * logp).sum(-1)


def chord_phi(logp: Tensor, w: World) -> Tensor:
    p = at_label(logp, w).exp()
    return sg(p * (1 - p)) * sft(logp, w)


def infosft(logp: Tensor, w: World, ceiling: float = 0.93) -> Tensor:
    p = sg(at_label(logp, w).exp())
    return p * (1 - (p / (1 - p)).log() / math.log(ceiling / (1 - ceiling))).relu() * sft(logp, w)


def sed_sft(logp: Tensor, w: World, lam: float = 0.2, k: int = 10, c: float = 0.95) -> Tensor:
    top = sg(logp.exp()).sort(-1, descending=True).values[:, :k].sum(-1)
    return sft(logp, w) + lam * (top < c) * (at_label(logp, w).exp() - 0.5) ** 2


def prift_prob(logp: Tensor, w: World) -> Tensor:
    return at_label(w.prior, w).exp() * sft(logp, w)


def prift_mass(logp: Tensor, w: World, tau: float = 0.5) -> Tensor:
    prior, label = w.prior.exp(), at_label(w.prior, w).exp()
    u = torch.stack([y + row[row < y].sum() for row, y in zip(prior, label, strict=True)])
    return (u >= tau) * sft(logp, w)


def talr(logp: Tensor, w: World, tau: float | None = None, w_min: float = 0.01) -> Tensor:
    loss = sft(logp, w)
    if tau is None:
        means = sorted(float(sg(loss)[w.sequence_ids == row].mean()) for row in w.sequence_ids.unique())
        tau = means[(len(means) - 1) // 2]
    return sg(at_label(logp, w).exp() ** (1 / tau)).clamp_min(w_min) * loss


def rho1(logp: Tensor, w: World, k: float = 0.6) -> Tensor:
    loss = sft(logp, w)
    excess = (sg(loss) + at_label(w.teacher, w)).tolist()
    order = sorted(range(len(excess)), key=lambda i: -excess[i])[: round(k * len(excess))]
    mask = torch.tensor([i in order for i in range(len(excess))])
    return mask * loss


def focal(logp: Tensor, w: World, gamma: float = 2.0) -> Tensor:
    return sg((1 - at_label(logp, w).exp()) ** gamma) * sft(logp, w)


def focal_full(logp: Tensor, w: World, gamma: float = 2.0) -> Tensor:
    return (1 - at_label(logp, w).exp()) ** gamma * sft(logp, w)


def unlikelihood(logp: Tensor, w: World, alpha: float = 1.0) -> Tensor:
    losses = []
    for row, (label, negatives) in enumerate(zip(w.labels.tolist(), w.negatives.tolist(), strict=True)):
        pushed = {token for token in negatives if token >= 0 and token != label}
        penalty = sum((torch.log1p(-logp[row, token].exp()) for token in pushed), start=logp.new_zeros(()))
        losses.append(-logp[row, label] - alpha * penalty)
    return torch.stack(losses)


def confidence_penalty(logp: Tensor, w: World, beta: float = 0.1) -> Tensor:
    return sft(logp, w) + beta * (logp.exp() * logp).sum(-1)


def idft(
    logp: Tensor, w: World, *, beta: float = 1.0, low: float = 0.1, high: float = 2.0, lambda_t: float = 1.0
) -> Tensor:
    phi = at_label(logp, w) - (logp.exp() * logp).sum(-1)
    exponent = 1 + lambda_t * (torch.exp(-phi / beta).clamp(low, high) - 1)
    return sg(at_label(logp, w).exp() ** exponent) * sft(logp, w)


def gift(logp: Tensor, w: World, beta: float = 20.0) -> Tensor:
    boosted = w.prior + beta * torch.nn.functional.one_hot(w.labels, logp.shape[1])
    return -(boosted.softmax(-1) * logp).sum(-1)


def one_minus_prior(logp: Tensor, w: World) -> Tensor:
    return (1 - at_label(w.prior, w).exp()) * sft(logp, w)


def inverse_prior(logp: Tensor, w: World, clip: float = 10.0) -> Tensor:
    return (1 / at_label(w.prior, w).exp()).clamp_max(clip) * sft(logp, w)


def deft(logp: Tensor, w: World, eps: float = 1e-6) -> Tensor:
    alpha = sg((logp.exp() ** 2).sum(-1))
    return (1 - at_label(logp, w).exp() ** alpha) / (alpha + eps)


def cayley_trans(logp: Tensor, w: World) -> Tensor:
    p = sg(at_label(logp, w).exp())
    floor = 0.5 * p.mean()
    alpha = (floor + (1 - floor) * p / (2 - p)).clamp(0.001, 1)
    return (1 - at_label(logp, w).exp() ** alpha) / alpha


def loss_and_gradient(objective: Objective, world: World, **symbols: Any) -> tuple[Tensor, Tensor]:
    """(loss per token, ∂Σ loss/∂logits)."""
    logits = world.leaf()
    loss = objective(logits.log_softmax(-1), world, **symbols)
    loss.sum().backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad
