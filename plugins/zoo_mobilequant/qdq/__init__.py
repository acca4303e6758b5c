"""Export to ONNX with QuantizeLinear and DequantizeLinear, for runtimes with static graphs."""

FORMAT = 1
"""Of the folder, in its ``model.json``."""
