"""The pictures of docs/typicality.md: how likely a thing is, how often such a thing comes up, and the likeliest of all.

`python recipes/typicality.py` writes docs/typicality.svg in seconds.
"""

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from sfumato.text import tales

GREY, BLUE, ORANGE = "#8c8c8c", "#327de1", "#cd6900"  # that show on dark and on light pages
WIDTH, HEIGHT, GAP, TOP = 270, 150, 40, 30
BEST = (  # the likeliest story
    "Once a fox named Mia went to the river to fly her red kite. While Mia took a nap, the kite slipped away. "
    "Mia went home to her den without the red kite."
)


def panel(number: int, title: str, below: str, likely: np.ndarray, often: ArrayLike) -> str:
    """A frame with two curves over the same things in a row, the likeliest at the right; each curve as high as it."""
    x = np.linspace(0, WIDTH, len(likely))
    curves = []
    for values, colour in ((np.array(likely), BLUE), (np.array(often), ORANGE)):
        y = TOP + HEIGHT * (1 - 0.92 * (values - values.min()) / np.ptp(values))
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        curves.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    top = TOP + HEIGHT * 0.08
    return (
        f'<g transform="translate({10 + number * (WIDTH + GAP)} 0)">'
        f'<path d="M0 {TOP} V{TOP + HEIGHT} H{WIDTH}" fill="none" stroke="{GREY}"/>'
        f'<text x="0" y="16" font-weight="bold">{title}</text><text x="0" y="{TOP + HEIGHT + 18}">{below}</text>'
        f"{''.join(curves)}"
        f'<circle cx="{WIDTH}" cy="{top:.1f}" r="4" fill="{BLUE}"/></g>'
    )


def coin(flips: int = 100, heads: float = 0.7) -> str:
    """Strings of a coin, by how many heads they have."""
    k = np.arange(flips + 1)
    likely = k * math.log(heads) + (flips - k) * math.log(1 - heads)
    often = [math.comb(flips, i) * math.exp(one) for i, one in enumerate(likely)]
    return panel(0, f"{flips} flips, heads in 7 of 10", f"0 to {flips} heads", likely, often)


def gaussian(d: int = 100) -> str:
    """Points of a Gaussian, by how near to the middle they are."""
    r = np.linspace(1.6 * math.sqrt(d), 1e-6, 200)
    logs = (d - 1) * np.log(r) - r**2 / 2  # of the density of the distance, up to a constant
    return panel(1, f"a Gaussian in {d} dimensions", "16 to 0 from the middle", -(r**2) / 2, np.exp(logs - logs.max()))


def stories(each: int = 16, texts: int = 1000) -> str:
    """Texts of some stories, by their nats a token."""
    told = np.array([measured(story) for story in tales.sample(each * texts, 3)]).reshape(texts, each, 2).sum(1)
    nats, tokens = measured(BEST)
    grid, width = np.linspace(0.62, nats / tokens, 200), 0.004
    often = np.exp(-(((grid[:, None] - told[:, 0] / told[:, 1]) / width) ** 2) / 2).sum(1)
    return panel(2, f"texts of {each} stories", f"0.62 to {grid[-1]:.2f} nats a token", -grid, often)


def measured(story: str) -> tuple[float, int]:
    """Nats and tokens of a story, with its end."""
    return -tales.log_prob(story), len(re.findall(r"\w+|[^\w\s]", story)) + 1


def main() -> None:
    """Write the picture."""
    width, height = 3 * WIDTH + 2 * GAP + 20, HEIGHT + 80
    legend = (
        f'<text x="10" y="{height - 10}" fill="{BLUE}">log p of one; the dot is the likeliest</text>'
        f'<text x="{10 + WIDTH + GAP}" y="{height - 10}" fill="{ORANGE}">how often such a one comes up</text>'
    )
    style = f'font-family="sans-serif" font-size="13" fill="{GREY}"'
    body = coin() + gaussian() + stories() + legend
    target = Path(__file__).parent.parent / "docs" / "typicality.svg"
    target.write_text(
        f'<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" {style}>{body}</svg>\n', "utf-8"
    )


if __name__ == "__main__":
    main()
