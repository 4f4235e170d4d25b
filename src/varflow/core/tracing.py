"""Whether torch is turning a model into a program that runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: Whether torch.export is at work: no compiled code of ours then, no kernel of one processor, and a number of rows
#: that is not known. torch says so itself from 2.7 on.
exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)
