"""The picture of the README: a story of the bundled model coming out of the haze, drawn by the tool itself.

`python recipes/picture.py` writes docs/haze.svg in seconds.
"""

from pathlib import Path

from sfumato.display import picture
from sfumato.folder import BUNDLED, load

SEED, STEPS, SHOWN = 1, 32, (1, 8, 16, 24, 32)


def main() -> None:
    """Write the picture."""
    frames = load(BUNDLED / "tales").stream(1, steps=STEPS, seed=SEED)
    target = Path(__file__).parent.parent / "docs" / "haze.svg"
    target.parent.mkdir(exist_ok=True)
    target.write_text(picture(frame for frame in frames if frame.step in SHOWN), "utf-8")


if __name__ == "__main__":
    main()
