"""YONOS-SR: one-step latent-diffusion super-resolution by scale distillation.

The method's own models are still planned. What is here is the ground that it shares with
``zoo_edge_sd_sr``: latent schedule, forward noise, resizing, degradations, tiles, scale
distillation, decoder fine-tuning, and the tiny networks. Import the module you need; this file
imports nothing, so that looking at the package costs nothing.
"""
