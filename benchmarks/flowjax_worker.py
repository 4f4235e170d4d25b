"""FlowJAX's planar flow on the first energy, in an environment of its own: reads counts, prints seconds.

Every line of standard input is a number of steps; the answer is the wall time they took. Run by
`python -m benchmarks.energy`, with the interpreter that VARFLOW_FLOWJAX names (flowjax 19.1.2, jax 0.10.2).
"""

import sys
import time


def main() -> None:
    layers, batch = int(sys.argv[1]), int(sys.argv[2])
    began = time.perf_counter()
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import jax.random as jr
    import optax
    import paramax
    from flowjax.distributions import Normal
    from flowjax.flows import planar_flow
    from flowjax.train.losses import ElboLoss
    from flowjax.train.train_utils import step

    def log_prob(z):
        ring = 0.5 * ((jnp.linalg.norm(z) - 2) / 0.4) ** 2
        modes = jnp.logaddexp(-0.5 * ((z[0] - 2) / 0.6) ** 2, -0.5 * ((z[0] + 2) / 0.6) ** 2)
        return modes - ring

    key = jr.key(0)
    flow = planar_flow(key, base_dist=Normal(jnp.zeros(2)), flow_layers=layers, invert=False)
    params, static = eqx.partition(
        flow, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )
    optimizer = optax.adam(1e-3)
    state, loss = optimizer.init(params), ElboLoss(log_prob, batch)

    def run(count: int) -> float:
        nonlocal params, state, key
        start = time.perf_counter()
        value = None
        for _ in range(count):
            key, sub = jr.split(key)
            params, state, value = step(
                params, static, key=sub, optimizer=optimizer, opt_state=state, loss_fn=loss
            )
        jax.block_until_ready(value)
        return time.perf_counter() - start

    run(1)
    print(time.perf_counter() - began, flush=True)
    for line in sys.stdin:
        print(run(int(line)), flush=True)


main()
