"""Shared parts of the recipes of latent super-resolution: photographs, stages, losses."""
