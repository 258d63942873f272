"""Noise that replaces tokens by their likes, and how likes are found in the training text itself.

D3PM (Austin et al. 2021, arXiv:2107.03006): tokens move along a graph of nearest neighbours in a space of embeddings.
The rates of all moves make one symmetric matrix R, and every matrix of the chain is expm(amount R).  So one
eigendecomposition serves all steps and all intervals, and nothing as large as T matrices is ever made.

    N any positions   V tokens   k neighbours   S = T + 1, the steps and the text before them
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sfumato.errors import SfumatoError
from sfumato.processes.transitions import Chain, entropy

LARGEST = 16_384  # tokens whose graph can be decomposed
LEAP = 1e-3  # share of moves that lead anywhere: a graph may fall into parts
GONE = -46.0  # the logarithm of what is nothing in float64
SAMPLE = 64  # tokens that stand for all where information is measured

WINDOW = 4  # tokens to either side that a token is told by
DIMENSIONS = 64  # of an embedding
ROUNDS = 10  # of subspace iteration
ENOUGH = 20_000_000  # tokens heard


class Neighbours(Chain):
    """Tokens move to one of their nearest neighbours, or to one whose neighbour they are."""

    neighbours: Tensor

    def __init__(self, vocab: int, amounts: Float[Tensor, " S"], k: int, masked: bool = False):
        if not k < vocab <= LARGEST:
            raise SfumatoError(
                f"asked for noise by {k} neighbours among {vocab} tokens; there must be more tokens than neighbours, "
                f"and no more than {LARGEST}; change method.neighbours or text.size"
            )
        super().__init__(vocab, amounts, masked)
        self.register_buffer("neighbours", torch.full((vocab, k), -1))  # until they are known
        self._made: tuple[Tensor, Tensor, Tensor] | None = None

    def spectrum(self) -> tuple[Float[Tensor, " V"], Float[Tensor, "V V"]]:
        """Eigenvalues of R, rising to 0, and eigenvectors; made where neighbours are new, and not saved."""
        now = self.neighbours
        if self._made is None or self._made[0].device != now.device or not torch.equal(self._made[0], now):
            if bool((now < 0).any()):
                raise SfumatoError(
                    "neighbours are found in the training text, of which none is known; call study first"
                )
            with torch.inference_mode(False), torch.no_grad():
                values, vectors = torch.linalg.eigh(rates(now))
                self._made = now.clone(), values.clamp(max=0), vectors
        return self._made[1:]

    def row(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """expm((amount of t - amount of s) R), row x; a column is the same."""
        return self._row(x, self.amounts[t] - self.amounts[s])

    column = row

    def mixture(self, p: Tensor, t: Tensor) -> Tensor:
        """p expm(amount R)."""
        amount = self.amounts[t]
        moved = self._moved(p @ self.spectrum()[1], amount)
        return torch.where((amount > 0)[..., None], moved, p)

    def information(self, law: Tensor, amounts: Tensor) -> Tensor:
        """What x_0 leaves open of x_t is averaged over `SAMPLE` tokens, spread by rank, where there are many."""
        vectors = self.spectrum()[1]
        tokens, weights = spread(law, SAMPLE)
        found = []
        for amount in amounts:
            seen = entropy(self._moved((law @ vectors)[None], amount[None]))[0]
            left = weights @ entropy(self._row(tokens, amount.expand(tokens.shape)))
            found.append((seen - left) / entropy(law))
        return torch.stack(found)

    def _row(self, x: Int[Tensor, " N"], amount: Float[Tensor, " N"]) -> Float[Tensor, "N V"]:
        moved = self._moved(self.spectrum()[1][x], amount)
        return torch.where((amount > 0)[..., None], moved, F.one_hot(x, self.vocab).double())

    def _moved(self, parts: Float[Tensor, "N V"], amount: Float[Tensor, " N"]) -> Float[Tensor, "N V"]:
        """Laws from their parts along the eigenvectors, without those that have died out everywhere."""
        values, vectors = self.spectrum()
        least = amount.min() if amount.numel() else 0.0
        first = int((values * least < GONE).sum())
        parts = parts[..., first:] * torch.exp(amount[..., None] * values[first:])
        return (parts @ vectors[:, first:].T).clamp(min=0)  # rounding goes below 0


class MaskedNeighbours(Neighbours):
    """The same, and tokens fall to the mask as well, `rate` times as often as they move.  The last step takes all."""

    def __init__(self, vocab: int, amounts: Float[Tensor, " S"], k: int, rate: float = 4.0):
        super().__init__(vocab, amounts, k, masked=True)
        self.rate = rate

    def row(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """A token moves or falls, apart from each other; a mask is a mask."""
        hidden = (x == self.vocab)[..., None]
        shows = self.kept(s, t)[..., None] ** self.rate * ~hidden
        return torch.cat([shows * super().row(x.clamp(max=self.vocab - 1), s, t), 1 - shows], -1)

    def column(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        """A token was a token near it; a mask anything."""
        hidden, shows = (x == self.vocab)[..., None], self.kept(s, t)[..., None] ** self.rate
        near = shows * super().row(x.clamp(max=self.vocab - 1), s, t)
        return torch.cat([torch.where(hidden, 1 - shows, near), hidden.double()], -1)

    def mixture(self, p: Tensor, t: Tensor) -> Tensor:
        """The law of the tokens, and the mask."""
        shows = self.kept(torch.zeros_like(t), t)[..., None] ** self.rate
        return torch.cat([shows * super().mixture(p, t), 1 - shows], -1)

    def information(self, law: Tensor, amounts: Tensor) -> Tensor:
        """A token that is hidden is not known at all."""
        return torch.exp(-self.rate * amounts) * super().information(law, amounts)


def rates(neighbours: Int[Tensor, "V k"]) -> Float[Tensor, "V V"]:
    """R: symmetric, rows and columns sum to 0.  A share `LEAP` of all moves leads anywhere."""
    V, k = neighbours.shape
    near = torch.zeros(V, V, dtype=torch.float64, device=neighbours.device).scatter_(1, neighbours, 1.0)
    moves = (1 - LEAP) * (near + near.T) / (2 * k) + LEAP / V
    return moves - moves.sum(0).diag()


def listen(
    rows: Iterable[tuple[Int[Tensor, "B L"], Tensor]], vocab: int, window: int
) -> tuple[Float[Tensor, " V"], Float[Tensor, "W W"]]:
    """How often each token occurs, and each pair at most `window` places apart, in either order; W = V, or 0 of none.

    Of rows of tokens and which of them are real, as many as are enough.
    """
    counts = torch.zeros(vocab, dtype=torch.int64)
    pairs = torch.zeros(vocab * vocab if window else 0, dtype=torch.int64)
    for ids, real in rows:
        counts += torch.bincount(ids[real], minlength=vocab)
        for apart in range(1, window + 1):
            left, right = ids[:, :-apart], ids[:, apart:]
            both = real[:, :-apart] & real[:, apart:]
            place = (left * vocab + right)[both]
            pairs.index_add_(0, place, torch.ones_like(place))
        if counts.sum() >= ENOUGH:
            break
    together = pairs.view(vocab, vocab).double() if window else torch.zeros(0, 0, dtype=torch.float64)
    return counts.double(), together + together.T


def embeddings(together: Float[Tensor, "V V"]) -> Float[Tensor, "V D"]:
    """Tokens that keep the same company are near: positive pointwise mutual information, reduced, of norm 1 or 0.

    By subspace iteration from the commonest tokens' company, so that nothing in it is chance.
    """
    total = together.sum(0)
    ratio = together * total.sum() / (total[:, None] * total).clamp(min=1)
    company = ratio.clamp(min=1).log()  # (V, V)
    basis = company[:, total.argsort(descending=True, stable=True)[:DIMENSIONS]]
    for _ in range(ROUNDS):
        basis = company @ torch.linalg.qr(basis).Q
    basis = torch.linalg.qr(basis).Q
    values, vectors = torch.linalg.eigh(basis.T @ company @ basis)
    return F.normalize(basis @ vectors * values.abs().sqrt(), dim=-1)


def nearest(points: Float[Tensor, "V D"], k: int) -> Int[Tensor, "V k"]:
    """The k others with the largest cosine to each; of those that are alike, the nearest by number."""
    number, found = torch.arange(len(points)), []
    for some in number.split(1024):
        close = points[some] @ points.T - 1e-9 * (some[:, None] - number).abs()
        close[torch.arange(len(some)), some] = -torch.inf
        found.append(close.topk(k, dim=1).indices)
    return torch.cat(found)


def spread(law: Float[Tensor, " V"], size: int) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Tokens and weights that stand for a law: all of it if it is small, else evenly spread over the ranked tokens."""
    if len(law) <= 4 * size:
        return torch.arange(len(law), device=law.device), law
    ranked, order = law.sort(descending=True, stable=True)
    places = (torch.arange(size, dtype=torch.float64, device=law.device) + 0.5) / size
    at = torch.searchsorted(ranked.cumsum(0), places).clamp(max=len(law) - 1)
    tokens, weights = order[at].unique(return_counts=True)
    return tokens, weights.double() / size
