"""Weights of others and of earlier runs: read, brought into a model's form, and told what was done to them."""
