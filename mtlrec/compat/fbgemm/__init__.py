"""FBGEMM's kernels and the modules that TorchRec builds of them."""
