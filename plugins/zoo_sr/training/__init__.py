"""What the recipes of latent super-resolution share: photographs, stages, losses."""
