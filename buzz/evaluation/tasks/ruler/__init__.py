"""The synthetic tasks of RULER (Hsieh et al., arXiv 2404.06654), made without a network or a tokenizer.

`texts` says what a generator gives and how lengths are counted; then any generator: `needles` (niah_*), `variables`
(vt), `counts` (cwe, fwe). `task` has the names, the grid of samples and the scores. docs/ruler.md has the prompts.
"""

from __future__ import annotations

from buzz.evaluation.tasks.ruler.task import Ruler

__all__ = ["Ruler"]
