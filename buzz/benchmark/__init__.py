"""Speed: prefill, decoding, throughput and kernels of BUZZ and what it is measured against, in one run."""
