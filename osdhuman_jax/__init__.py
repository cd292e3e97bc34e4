"""Human body restoration in one diffusion step: OSDHuman (ICML 2025) in JAX and Flax NNX."""
