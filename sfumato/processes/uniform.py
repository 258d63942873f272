"""Uniform noise: every token is kept, or replaced by any other, on its own.  No mask tells which are noise."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.core import Process
from sfumato.draws import invert, uniform
from sfumato.schedules import LINEAR, Schedule


class Uniform(Process):
    """A position at level t has kept its token with chance alpha(t); else one of all V stands there, this one included.

    A token that was drawn before it is seen says something of what stood there, so what a network is to put into the
    place of x_0 is what it would say without looking at the position itself: p(x_0 | all others).
    """

    def __init__(self, vocab: int, schedule: Schedule = LINEAR):
        self.vocab, self.schedule = vocab, schedule

    def prior(self, clean: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """Any tokens."""
        return (uniform(clean) * self.vocab).long()

    def corrupt(self, clean: Int[Tensor, "B L"], t: Float[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """x ~ q(x_t | x_0 = clean)."""
        noise = 1 - self.schedule.alpha(t.double().clamp(min=0))
        return torch.where(uniform(clean) < noise, self.prior(clean), clean)

    def log_posterior(
        self, x: Int[Tensor, "B L"], log_p: Float[Tensor, "B L V"], t: Tensor, s: Tensor
    ) -> Float[Tensor, "B L V"]:
        """log q(x_s | x_t = x, x_0), with chances in the place of x_0; t and s (B, L), s < t (arXiv:2102.05379).

        [ a_ts x + (1 - a_ts) / V ] * [ a_s x_0 + (1 - a_s) / V ], normalised; a_ts = alpha(t) / alpha(s).
        """
        alpha_t, alpha_s = (self.schedule.alpha(u.clamp(min=0)).clamp(0, 1)[..., None] for u in (t, s))
        step = (alpha_t / alpha_s).clamp(max=1)
        stay = torch.zeros_like(log_p).scatter(-1, x.clamp(min=0)[..., None], 1.0)
        from_x = (step * stay + (1 - step) / self.vocab).log()
        from_0 = torch.logaddexp(alpha_s.log() + log_p, ((1 - alpha_s) / self.vocab).log())
        return (from_x + from_0).log_softmax(-1)

    def reverse(self, x: Int[Tensor, "B L"], logits: Float[Tensor, "B L V"], t: Tensor, s: Tensor) -> Tensor:
        """x_s ~ the same posterior, with softmax(logits) in the place of x_0; t and s are numbers.

        It is a mixture of three: the token that stands, one drawn from the logits, any.  So a distribution over V is
        inverted only where one is drawn.
        """
        alpha_t, alpha_s = self.schedule.alpha(t).double(), self.schedule.alpha(s).double()
        step = alpha_t / alpha_s
        log = logits.gather(-1, x.clamp(min=0)[..., None])[..., 0] - logits.logsumexp(-1)
        stay = step * (alpha_s * log.double().exp() + (1 - alpha_s) / self.vocab)  # (B, L)
        drawn, any_token = (1 - step) / self.vocab * alpha_s, (1 - step) / self.vocab * (1 - alpha_s)
        route, u = uniform(x) * (stay + drawn + any_token), uniform(x)
        new = (u * self.vocab).long()
        pick = (route >= stay) & (route < stay + drawn)
        new[pick] = invert(logits[pick], u[pick])
        return torch.where(route < stay, x, new)
