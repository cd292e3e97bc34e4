"""Weights in installed packages, which are only looked up and never imported.

Importing a package would load its own runtime, which may need Vulkan or TensorFlow.
"""

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from osdhuman_jax.weights.torch_files import WeightsError


def packed_files(package: str, names: Sequence[str], advice: str) -> list[Path]:
    """The files of these names in an installed package, in their order.

    Raises WeightsError, which ends with `advice`, where the package or one of them is missing.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise WeightsError(f"{package}: not installed: {advice}") from None
    found = {file.name: Path(str(file.locate())) for file in files}
    if missing := [name for name in names if name not in found]:
        text = f"{package} {metadata.version(package)}: has no {' or no '.join(missing)}"
        raise WeightsError(f"{text}: {advice}")
    return [found[name] for name in names]
