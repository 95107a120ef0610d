"""From a trained run to a checked ONNX file, and from the file to class maps without torch."""
