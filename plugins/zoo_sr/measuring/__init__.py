"""How super-resolution is measured: test sets, quality, controls, cost, peers."""
