"""What disks and copies do to files."""

from pathlib import Path


def flip(path: Path, at: int = -5) -> None:
    """Turn one bit of a file over."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
