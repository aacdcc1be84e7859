"""The Triton kernels, and where they run. The only room that imports triton."""
