"""Models that are part of the package, so that an installed one restores at once.

BUNDLED is the model folder that commands and `Restorer.load` take where none is named, and the only
constant that says where it lies. Its README.md is the model's card.
"""

from pathlib import Path

BUNDLED = Path(__file__).parent / "nano"
