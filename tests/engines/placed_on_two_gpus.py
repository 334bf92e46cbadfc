"""Places the engines of two-gpus.yaml on a private Ray with two logical GPUs; prints what each may see, as JSON."""

from __future__ import annotations

import asyncio
import json
import secrets
from pathlib import Path

from disagg.cluster.controller import Controller
from disagg.cluster.models import Told
from disagg.cluster.serve import ray_and_janitor
from disagg.cluster.setting import Setting
from disagg.load import load_config
from disagg.planning.plan import Plan


async def no_other(_plan: Plan) -> Told:
    raise AssertionError("no other model comes")


async def main() -> None:
    deployment = load_config(Path("configs/two-gpus.yaml"), ["ray.address=local", "ray.gpus=2", "ray.cpus=8"])
    name = secrets.token_hex(4)
    async with ray_and_janitor(deployment, name) as (plans, _):
        (plan,) = plans
        setting = Setting(name, plan.device, "", secrets.token_hex(32), plan.deadlines, [], "127.0.0.1")
        controller = Controller(deployment, plans, setting, no_other)
        try:
            await controller.fleet.place(plan.largest_first())
            engines = {each.plan.id: each.node for each in controller.fleet.supervisors}
            print(json.dumps({name: await node._made().devices.remote() for name, node in engines.items()}))
        finally:
            await controller.stop()


asyncio.run(main())
