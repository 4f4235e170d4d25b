"""The explorer: a page on which a fitted model answers at once. Plain functions, and Gradio around them.

``opened`` is a run and what it can show, ``latent``, ``bending``, ``trajectories``, ``examples`` and ``draws`` what is
computed, ``drawing`` how it becomes text and small pictures, ``tabs`` and ``app`` the page. Only the last two know
Gradio.
"""
