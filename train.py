"""python train.py --config configs/base.py --workdir runs/base; see `--help` for all settings."""

from osdhuman_jax.commands.train import command

if __name__ == "__main__":
    command()
