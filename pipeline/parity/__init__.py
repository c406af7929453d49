"""Check that the ONNX graphs of a bundle compute what the torch model computes."""
