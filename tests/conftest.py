"""Settings of every test: shapes checked, no implicit promotion, exact products, few threads."""

import jaxtyping

jaxtyping.install_import_hook("osdhuman_jax", "beartype.beartype")  # before the package's import

import jax  # noqa: E402
import torch  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
torch.set_num_threads(1)
