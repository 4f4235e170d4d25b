"""The explorer: a page on which a fitted model answers at once. Plain functions, and Gradio around them.

``opened`` is a run and what it can show; ``latent``, ``bending``, ``trajectories``, ``examples`` and ``draws`` are
what is computed; ``drawing`` is how it becomes text and small pictures; ``tabs`` and ``app`` are the page. Only the
last two know Gradio.
"""
