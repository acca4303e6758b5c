"""Shared ground of the super-resolution methods: no hooks and no models of its own.

``latent`` is the process in the papers' order, ``networks`` and ``pixels`` what it runs on;
``upscaler`` is what a user touches (``tiles``, ``export``, ``cli``); ``training`` and ``measuring``
are what recipes and benchmarks share.
"""
