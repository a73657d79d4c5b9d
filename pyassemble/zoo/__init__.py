"""Many networks: where they come from, what is kept of each, and building them all."""
