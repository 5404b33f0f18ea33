"""Numeric kernels: `ops` is what the rest of the package calls, `reference` is the specification in NumPy."""
