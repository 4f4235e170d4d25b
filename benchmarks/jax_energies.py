"""Planar fits to the four energies written by hand in JAX: all updates in one ``lax.scan``, one program for all fits.

The same flow, base, objective, optimizer, schedule and batch as ``varflow fit energy``. Run by ``python -m
benchmarks.energies`` with the interpreter that VARFLOW_JAX names, in a process whose whole time counts:

    python benchmarks/jax_energies.py --fits 40 --steps 10000 [--loop scan] [--evaluate 100000]

``--loop`` says how the 32 planar steps stand in the program: unrolled, which compiles for longer and runs faster, or
as a scan. Prints one line of JSON.
"""

import argparse
import json
import math
import time

BEGAN = time.perf_counter()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

IMPORTED = time.perf_counter()
LENGTH, SAMPLES, LR, ANNEAL = 32, 256, 5e-3, 1_000
SHIFT = math.log(math.e - 1)
LOG_Z = (1.8774880, 2.1766276, 2.7362053, 2.7986889)


# Coordinates stand apart, [S] each: XLA makes vector loops of that, and none of a last dimension of 2.


def wall(z):
    return 5.0 * jnp.maximum(jnp.abs(z) - 4.0, 0.0) ** 2


def wave(x):
    return jnp.sin(math.pi / 2 * x)


def u1(x, y):
    r = jnp.sqrt(jnp.maximum(x * x + y * y, 1e-30))
    lobes = jnp.logaddexp(-0.5 * ((x - 2) / 0.6) ** 2, -0.5 * ((x + 2) / 0.6) ** 2)
    return lobes - 0.5 * ((r - 2) / 0.4) ** 2


def u2(x, y):
    return -0.5 * ((y - wave(x)) / 0.4) ** 2 - wall(x) - wall(y)


def u3(x, y):
    above = y - wave(x)
    below = above + 3 * jnp.exp(-0.5 * ((x - 1) / 0.6) ** 2)
    return jnp.logaddexp(-0.5 * (above / 0.35) ** 2, -0.5 * (below / 0.35) ** 2) - wall(x) - wall(y)


def u4(x, y):
    above = y - wave(x)
    below = above + 3 * jax.nn.sigmoid((x - 1) / 0.3)
    return jnp.logaddexp(-0.5 * (above / 0.4) ** 2, -0.5 * (below / 0.35) ** 2) - wall(x) - wall(y)


ENERGIES = (u1, u2, u3, u4)


def start(key):
    w = jax.random.normal(key, (LENGTH, 2)) / math.sqrt(2)
    return {
        "u": jnp.zeros((LENGTH, 2)),
        "w": w,
        "b": jnp.zeros(LENGTH),
        "mean": jnp.zeros(2),
        "log_scale": jnp.zeros(2),
    }


def push(parameters, x, y, unrolled):
    """z′ and ladj of points, [S] each."""
    u, w, b = parameters["u"], parameters["w"], parameters["b"]
    dot = (u * w).sum(-1)
    m = jax.nn.softplus(dot + SHIFT) - 1
    lifted = u + ((m - dot) / (w * w).sum(-1))[:, None] * w

    def one(carry, step):
        x, y, ladj = carry
        u, w, b, m = step
        h = jnp.tanh(x * w[0] + y * w[1] + b)
        ladj = ladj + jnp.log(h * h + (1 - h * h) * (1 + m))
        return (x + h * u[0], y + h * u[1], ladj), None

    carry = x, y, jnp.zeros_like(x)
    if not unrolled:
        return jax.lax.scan(one, carry, (lifted, w, b, m))[0]
    for k in range(LENGTH):
        carry, _ = one(carry, (lifted[k], w[k], b[k], m[k]))
    return carry


def terms(parameters, noise, energies, unrolled):
    """log q and log π ``[fits, S]`` of the points that come of noise ``[fits, 2, S]``; the fits in equal shares."""
    mean, log_scale = parameters["mean"], parameters["log_scale"]
    x, y = (mean[:, d, None] + jnp.exp(log_scale[:, d, None]) * noise[:, d] for d in (0, 1))
    flow = {name: parameters[name] for name in ("u", "w", "b")}
    x, y, ladj = jax.vmap(lambda p, x, y: push(p, x, y, unrolled))(flow, x, y)
    log_q = -0.5 * (noise**2).sum(1) - math.log(2 * math.pi) - log_scale.sum(-1, keepdims=True) - ladj
    share = len(x) // len(energies)
    parts = [slice(i * share, (i + 1) * share) for i in range(len(energies))]
    return log_q, jnp.concatenate([f(x[part], y[part]) for f, part in zip(energies, parts, strict=True)])


def train(key, fits, energies, steps, unrolled):
    """All fits: their parameters ``[fits, ...]``, and the mean loss of each step."""

    def loss(parameters, noise, beta):
        log_q, log_p = terms(parameters, noise, energies, unrolled)
        return (log_q - beta * log_p).mean(-1).sum()

    def update(carry, step):
        parameters, m, v, key = carry
        beta = jnp.minimum(1.0, 0.01 + step / ANNEAL)
        rate = LR * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))
        fixed1, fixed2 = 1 - 0.9 ** (step + 1.0), 1 - 0.999 ** (step + 1.0)
        key, drawn = jax.random.split(key)
        noise = jax.random.normal(drawn, (fits, 2, SAMPLES))
        value, gradient = jax.value_and_grad(loss)(parameters, noise, beta)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, gradient)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, gradient)
        parameters = jax.tree.map(
            lambda p, m, v: p - rate * (m / fixed1) / (jnp.sqrt(v / fixed2) + 1e-8), parameters, m, v
        )
        return (parameters, m, v, key), value / fits

    parameters = jax.vmap(start)(jax.random.split(key, fits))
    nothing = jax.tree.map(jnp.zeros_like, parameters)
    (parameters, *_), losses = jax.lax.scan(update, (parameters, nothing, nothing, key), jnp.arange(steps))
    return parameters, losses


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fits", type=int, default=1, help="1: the first energy; else a quarter of them on each")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--loop", choices=["unrolled", "scan"], default="unrolled")
    parser.add_argument("--evaluate", type=int, default=0, help="samples of KL(q‖p) afterwards")
    options = parser.parse_args()
    energies = ENERGIES[:1] if options.fits == 1 else ENERGIES
    unrolled = options.loop == "unrolled"
    key = jax.random.key(0)
    program = jax.jit(lambda key: train(key, options.fits, energies, options.steps, unrolled))
    compiled = program.lower(key).compile()
    made = time.perf_counter()
    parameters, losses = jax.block_until_ready(compiled(key))
    done = time.perf_counter()
    found = {
        "import": IMPORTED - BEGAN,
        "compile": made - IMPORTED,
        "run": done - made,
        "last": float(losses[-100:].mean()),
    }
    if options.evaluate:
        share, found["kl"] = options.fits // len(energies), []
        for index, (energy, log_z) in enumerate(zip(energies, LOG_Z, strict=False)):
            noise = jax.random.normal(jax.random.key(1), (share, 2, options.evaluate))
            fitted = jax.tree.map(lambda p, i=index: p[i * share : (i + 1) * share], parameters)
            log_q, log_p = jax.jit(lambda p, e, energy=energy: terms(p, e, (energy,), True))(fitted, noise)
            found["kl"].append((log_z + (log_q - log_p).mean(-1)).tolist())
    print(json.dumps(found))


main()
