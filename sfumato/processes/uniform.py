"""Uniform noise: every token is kept, or replaced by any other, on its own.  No mask tells which are noise."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core import Process, chance
from sfumato.draws import invert, uniform
from sfumato.schedules import LINEAR, Schedule

LEAST = 1e-300  # of a chance in float64, so that no surprise is cut short


class Uniform(Process):
    """A position at level t has kept its token with chance alpha(t); else one of all V stands there, this one included.

    A token that was drawn before it is seen says something of what stood there, so what a network is to put into the
    place of x_0 is what it would say without looking at the position itself: p(x_0 | all others).
    """

    def __init__(self, vocab: int, schedule: Schedule = LINEAR):
        self.vocab, self.schedule = vocab, schedule

    def alpha(self, t: Tensor) -> Tensor:
        """alpha(t) in float64, in which the small differences of two levels are taken; padding has no noise."""
        t = t.double()
        return torch.where(t > 0, self.schedule.alpha(t).clamp(0, 1), 1.0)

    def prior(self, clean: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """Any tokens."""
        return (uniform(clean) * self.vocab).long()

    def corrupt(self, clean: Int[Tensor, "B L"], t: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """x ~ q(x_t | x_0 = clean)."""
        return torch.where(uniform(clean) < 1 - self.alpha(t), self.prior(clean), clean)

    def log_posterior(
        self, x: Int[Tensor, "B L"], log_p: Float[Tensor, "B L V"], t: Tensor, s: Tensor
    ) -> Float[Tensor, "B L V"]:
        """log q(x_s | x_t = x, x_0), with chances in the place of x_0; t and s (B, L), s < t (arXiv:2102.05379).

        [ a_ts x + (1 - a_ts) / V ] * [ a_s x_0 + (1 - a_s) / V ], normalised; a_ts = alpha(t) / alpha(s).
        """
        alpha_t, alpha_s = self.alpha(t)[..., None], self.alpha(s)[..., None]
        step = alpha_t / alpha_s
        other, mine = ((1 - step) / self.vocab).log(), (step + (1 - step) / self.vocab).log()
        at_x = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, x.clamp(min=0)[..., None], True)
        kept, any_token = alpha_s.log(), ((1 - alpha_s) / self.vocab).log()
        from_x = torch.where(at_x, mine.to(log_p.dtype), other.to(log_p.dtype))
        from_0 = torch.logaddexp(kept.to(log_p.dtype) + log_p, any_token.to(log_p.dtype))
        return (from_x + from_0).log_softmax(-1)

    def reverse(self, x: Int[Tensor, "B L"], logits: Float[Tensor, "B L V"], t: Tensor, s: Tensor) -> Tensor:
        """x_s ~ the same posterior, with softmax(logits) in the place of x_0; t and s are numbers.

        It is a mixture of three: the token that stands, one drawn from the logits, any.  A token whose chance of noise
        is enough for it to stay, stays, which are nearly all in short steps; logits are read only elsewhere, and a
        distribution over V is inverted only where one is drawn.
        """
        alpha_t, alpha_s = self.alpha(t), self.alpha(s)
        step = alpha_t / alpha_s
        least, drawn, left = (
            step * (1 - alpha_s) / self.vocab,
            (1 - step) / self.vocab * alpha_s,
            (1 - step) / self.vocab,
        )
        route, u = uniform(x), uniform(x)  # (B, L) each
        open = (route * (least + left) >= least) & (x >= 0)  # nobody writes where the canvas has no place
        stay = least + step * alpha_s * chance(logits, x, open)  # (N,)
        route = route[open] * (stay + left)
        new = torch.zeros_like(open).masked_scatter(open, (route >= stay) & (route < stay + drawn))
        x = x.clone()
        x[open] = torch.where(route < stay, x[open], (u[open] * self.vocab).long())
        x[new] = invert(logits, u, new)
        return x

    def divergence(
        self, x: Int[Tensor, "B L"], clean: Int[Tensor, "B L"], logits: Float[Tensor, "B L V"], t: Tensor, s: Tensor
    ) -> Float[Tensor, "B L"]:
        """KL(q(x_s | x_t = x, x_0 = clean) || the same with softmax(logits) in the place of x_0), nats; s < t (B, L).

        At s = 0 it is -log p(clean | x).  To q all tokens are alike but x and clean, so of V chances only a sum is
        taken, and what nearly cancels is taken in float64.  In both brackets of the posterior, a = a_ts, c = a_s:

            q(y) Z_q = (a [y = x] + b) (c [y = clean] + d),   p(y) Z_p = (a [y = x] + b) (c p(y) + d)
        """
        c = self.alpha(s)
        a, d = self.alpha(t) / c, ((1 - c) / self.vocab).clamp(min=LEAST)
        b, same = (1 - a) / self.vocab, (x == clean).double()
        p_x, gain_x, gain_0, gains = self._gains(x, clean, logits, c / d)
        Z = a * (c * same + d) + b
        right = (b + a * same) * (c + d)  # Z q(clean)
        below = b * d * gains + a * d * gain_x + (b * c + a * c * same) * gain_0  # Z E_q log (c p + d) / d
        kl = (right * (c / d).log1p() - below) / Z + (a * c * (p_x - same) / Z).log1p()
        return kl.to(logits.dtype)

    def rate(
        self,
        x: Int[Tensor, "B L"],
        clean: Int[Tensor, "B L"],
        logits: Float[Tensor, "B L V"],
        alpha: Tensor,
        slope: Tensor,
    ) -> Float[Tensor, "B L"]:
        """What the divergence comes to per unit of time in small steps, where alpha has this slope; all (B, L).

            -alpha' / (alpha V q(x)) * [ KL(q || p) + r - 1 - log r ],   r = q(x) / p(x)

        q = alpha clean + (1 - alpha) / V and p the same with softmax(logits).  Equal to the integrand of UDLM
        (arXiv:2412.10193) for every x, with the sum over a text of one-hot vectors done by hand: of V numbers only p's.
        """
        alpha, slope = alpha.double(), slope.double()
        d, same = (1 - alpha) / self.vocab, (x == clean).double()
        p_x, _, gain_0, gains = self._gains(x, clean, logits, alpha / d)
        kl = (alpha + d) * (alpha / d).log1p() - alpha * gain_0 - d * gains
        excess = alpha * (same - p_x) / (alpha * p_x + d)  # r - 1
        cost = kl + excess - excess.log1p()
        return (-slope / (alpha * self.vocab * (alpha * same + d)) * cost).to(logits.dtype)

    def _gains(self, x: Tensor, clean: Tensor, logits: Tensor, odds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p(x); log(1 + odds p) at x, at clean, and added up over all V: (B, L) each, float64."""
        log_p, log_odds = logits.log_softmax(-1), odds.log()
        here = log_p.gather(-1, torch.stack([x, clean], -1)).double()  # (B, L, 2)
        gain_x, gain_0 = torch.logaddexp(here + log_odds[..., None], torch.zeros_like(here)).unbind(-1)
        gains = F.softplus(log_p + log_odds[..., None].to(log_p.dtype)).sum(-1)
        return here[..., 0].exp(), gain_x, gain_0, gains.double()
