"""python infer.py --input photos/ --output restored/; see `--help` for all flags."""

from osdhuman_jax.commands.restore import command

if __name__ == "__main__":
    command()
