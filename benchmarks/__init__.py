"""One script per number that the README quotes."""
