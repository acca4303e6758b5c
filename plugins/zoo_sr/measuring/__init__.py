"""Measuring super-resolution: test sets, quality, cost, peers."""
