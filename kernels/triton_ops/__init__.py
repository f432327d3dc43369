"""The operators' GPU kernels in Triton; a module here has the name of the operator it serves.

Each offers ``takes``, which says whether its kernels serve the tensors at hand (else PyTorch's own
operators do), ``forward`` and ``backward``. They compute in float32, never add atomically, and give
the same bits every time. Under ``TRITON_INTERPRET=1`` they run on CPU tensors.
"""
