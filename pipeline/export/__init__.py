"""Write a bundle: ONNX graphs, weights, manifest and model card."""
