"""Export to ONNX with QuantizeLinear and DequantizeLinear, for runtimes with static graphs."""
