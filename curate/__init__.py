"""HQ-ACF: from annotated photographs to a packed set of high-quality crops of people."""

import importlib.util

if importlib.util.find_spec("pyarrow") is None:
    raise ModuleNotFoundError("curate needs pyarrow: pip install 'osdhuman-jax[curate]'")
