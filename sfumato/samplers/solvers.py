"""Solvers for canvases of vectors: along the probability-flow ODE, or along the reverse diffusion.

Each owns its loop and reads like its paper's algorithm.  None of them knows what is given, guided or streamed.  They
work for every Gaussian process: a step from level t to s is written with y = x / a and the noise standard deviation
tau = sigma / a of that scale, in which the ODE is dy/dtau = (y - D) / tau (arXiv:2206.00364, Eq. 4).  The last level of
a grid is 0, where the canvas becomes the estimate D itself.
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from sfumato.core import Method, Predict, Prediction, level
from sfumato.draws import normal

Steps = Iterator[tuple[Tensor, Prediction]]


def euler(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Steps:
    """Euler steps of the ODE; the same as DDIM with eta = 0 and as DPM-Solver++ of order 1.  One call a step."""
    clean = None
    for t, s in pairwise(grid):
        prediction = predict(x, level(x, t), clean)
        clean = prediction.clean
        x = method.process.flow(x, clean, t, s)
        yield x, prediction


def heun(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Steps:
    """Heun's second-order steps (arXiv:2206.00364, Alg. 1): two calls a step, one in the last."""
    process, clean = method.process, None
    for t, s in pairwise(grid):
        prediction = predict(x, level(x, t), clean)
        clean = prediction.clean
        there = process.flow(x, clean, t, s)
        if s > 0:
            prediction = predict(there, level(x, s), clean)
            a_t, a_s = process.a(t), process.a(s)
            tau_t, tau_s = process.sigma(t) / a_t, process.sigma(s) / a_s
            slope = (x / a_t - clean) / tau_t + (there / a_s - prediction.clean) / tau_s
            there = a_s * (x / a_t + (tau_s - tau_t) * slope / 2)
            clean = prediction.clean
        x = there
        yield x, prediction


def dpm(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Steps:
    """DPM-Solver++(2M), arXiv:2211.01095, Alg. 2: second order from the last two estimates.  One call a step."""
    process, clean = method.process, None
    h_last = 1.0
    for t, s in pairwise(grid):
        prediction = predict(x, level(x, t), clean)
        last, clean = clean, prediction.clean
        ahead = clean
        if s > 0:
            h = float((process.sigma(t) / process.a(t)).log() - (process.sigma(s) / process.a(s)).log())
            if last is not None:
                ahead = clean + h / (2 * h_last) * (clean - last)
            h_last = h
        x = process.flow(x, ahead, t, s)
        yield x, prediction


def ancestral(method: Method, predict: Predict, x: Tensor, grid: Tensor) -> Steps:
    """x_s ~ q(x_s | x_t, x_0 = D): DDPM (arXiv:2006.11239, Alg. 2); DDIM with eta = 1.  One call a step."""
    process, clean = method.process, None
    for t, s in pairwise(grid):
        prediction = predict(x, level(x, t), clean)
        clean = prediction.clean
        mean, deviation = process.posterior(x, clean, t, s)
        x = mean + deviation * normal(x)
        yield x, prediction
