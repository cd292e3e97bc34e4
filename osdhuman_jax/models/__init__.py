"""The bundled model, inside the package so that an installed one restores at once."""

from pathlib import Path

BUNDLED = Path(__file__).parent / "nano"
