"""What users write by mistake: every marked line is refused by the rule it names, and no other line is."""

from typing import Any

import torch

import varflow as vf

y: int = vf.fit("digits", epochs="x", nosuch=3)  # mypy: assignment, call-arg, arg-type; pyright: reportCallIssue
x: int = vf.fit("digits")  # mypy: assignment; pyright: reportAssignmentType
vf.fit("digits", nosuch=3)  # mypy: call-arg; pyright: reportCallIssue
vf.fit("digits", epochs="x")  # mypy: arg-type; pyright: reportArgumentType
vf.fit("digits", flow="planer")  # mypy: arg-type; pyright: reportArgumentType
vf.fit("digits", lenght=3)  # mypy: call-arg; pyright: reportCallIssue
vf.fit(3)  # mypy: arg-type; pyright: reportArgumentType
vf.fit("digits", amortized="yes")  # mypy: arg-type; pyright: reportArgumentType
vf.resume("run", lr=1e-3)  # mypy: call-arg; pyright: reportCallIssue
vf.RunSpec().replace(objective="vae")  # mypy: arg-type; pyright: reportArgumentType
vf.RunSpec().replace(latents=3)  # mypy: call-arg; pyright: reportCallIssue

vf.fitt("digits")  # mypy: attr-defined; pyright: reportAttributeAccessIssue
vf.flows.Planner(2)  # mypy: attr-defined; pyright: reportAttributeAccessIssue
vf.likelihoods.Poisson()  # mypy: attr-defined; pyright: reportAttributeAccessIssue
vf.priors.StandardNormal("2")  # mypy: arg-type; pyright: reportArgumentType
vf.Model(vf.priors.StandardNormal(2))  # mypy: call-arg; pyright: reportCallIssue

run = vf.load("run")
run.foo()  # mypy: attr-defined; pyright: reportAttributeAccessIssue
run.sample("3")  # mypy: arg-type; pyright: reportArgumentType
rows: list[Any] = run.log_prob(torch.zeros(3, 2))  # mypy: assignment; pyright: reportAssignmentType
number: str = run.evaluate().estimates["nll"].value  # mypy: assignment; pyright: reportAssignmentType
vf.load("run", parts=[torch.nn.Linear(2, 2)])  # mypy: arg-type; pyright: reportArgumentType
vf.flows.Planar(2)(torch.zeros(3, 2)).sum()  # mypy: attr-defined; pyright: reportAttributeAccessIssue
