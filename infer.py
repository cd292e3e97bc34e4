"""Restore photographs from a clone: python infer.py --input photos/ --output restored/

The same as `osdhuman restore`, which an installed package has; `--help` lists all flags.
"""

from osdhuman_jax.__main__ import start

if __name__ == "__main__":
    start("restore", "infer.py")
