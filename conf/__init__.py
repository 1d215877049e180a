"""Hydra configuration groups; `tdrs.configuration` composes them."""
