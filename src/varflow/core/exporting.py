"""Whether torch is making a graph that leaves it, where nothing may depend on the number of rows."""

from __future__ import annotations

import torch

#: Inside ``torch.export`` and ``torch.onnx.export`` true; torch before 2.7 does not tell, and it is false.
exporting = getattr(torch.compiler, "is_exporting", lambda: False)
