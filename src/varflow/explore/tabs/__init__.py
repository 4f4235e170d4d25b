"""The tabs of the explorer's page: what can be touched, and which function answers. Needs Gradio."""

from varflow.explore.tabs.controls import Shared, condition_controls
from varflow.explore.tabs.draws import draws_tab
from varflow.explore.tabs.flow import flow_tab, trajectory_tab
from varflow.explore.tabs.latents import between_tab, latent_tab
from varflow.explore.tabs.own import own_tab
from varflow.explore.tabs.side import alike, side_tab

__all__ = [
    "Shared", "alike", "between_tab", "condition_controls", "draws_tab", "flow_tab", "latent_tab", "own_tab",
    "side_tab", "trajectory_tab",
]  # fmt: skip
