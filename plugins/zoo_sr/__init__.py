"""Code that the super-resolution methods share; it has no hooks and no models.

``latent`` is the diffusion process in the papers' order; ``networks`` and ``pixels`` have its
networks and resizing; ``upscaler`` is the user's interface (with ``tiles``, ``export``, ``cli``);
``training`` and ``measuring`` are for recipes and benchmarks.
"""
