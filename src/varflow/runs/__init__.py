"""The verbs ``fit``, ``resume``, ``load`` and ``sweep``; the files of a run, and what it does with rows."""
