"""Settings of every test: shapes checked, no implicit promotion, exact products, one thread."""

import os
import signal
import tempfile
from pathlib import Path

import jaxtyping

jaxtyping.install_import_hook("osdhuman_jax", "beartype.beartype")  # before the package's import

# Compiling takes longer than running. What one test has compiled is there for the next one, for
# other workers and for the processes that tests start.
CACHE = Path(tempfile.gettempdir()) / f"osdhuman_jax-tests-{os.getuid()}"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# A shell that starts a job in the background has it, and all its children, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sd21():
    """Shapes of the default model, Stable Diffusion 2.1-base and RAM, with LoRA of rank 4."""
    from convert import abstract

    from osdhuman_jax.config import ModelConfig
    from osdhuman_jax.methods import lora
    from osdhuman_jax.methods.build import build_restorer

    def build(rngs):
        model = build_restorer(ModelConfig(), rngs=rngs)
        size = {"rank": 4, "alpha": 8.0, "rng": np.random.default_rng(0)}
        lora.inject(model.unet, lora.unet_targets(model.unet), **size)
        lora.inject(model.vae, lora.vae_encoder_targets(model.vae), **size)
        return model

    return abstract(build)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny restorer; not to be changed."""
    import tiny

    return tiny.save(tmp_path_factory.mktemp("models") / "tiny")
