"""What Ray says it can share out is what its head was told at the start."""

import os

from penstock.capacity.ray import RestRayApi
from support.local_stack import LocalStack


async def test_ray_tells_the_cpus_that_its_head_was_started_with(stack: LocalStack) -> None:
    environment = stack.environment
    api = RestRayApi(environment["PENSTOCK_RAY_API"], environment["RAY_AUTH_TOKEN"])
    found = await api.resources()
    await api.close()
    # One replica of half a CPU: as many as there are cores, and two at least.
    assert max(os.cpu_count() or 1, 2) == found.cpus
