"""What a job may ask of a node, by name: `--resource gpu8_h100`.

Schedulers need numbers (cores, GPUs, memory); people remember machines. The table holds nodes as they are commonly
sold, a little under the full memory so that the node's own daemons keep theirs. Edit it to your cluster: nothing else
knows these numbers. TorchX's own names (`aws_p4d.24xlarge`, `gpu.small`, ...) are accepted too.

They are looked up here and not registered as `torchx.named_resources` entry points, because those are seen only once
the package is installed, and a launch should work from a fresh clone with nothing but TorchX.
"""

import os

from torchx import specs
from torchx.specs.finder import ComponentValidationException

GIB = 1024  # Resource.memMB counts mebibytes

RESOURCES = {
    "cpu_small": specs.Resource(cpu=2, gpu=0, memMB=7 * GIB),
    "cpu_medium": specs.Resource(cpu=16, gpu=0, memMB=60 * GIB),
    "cpu_large": specs.Resource(cpu=64, gpu=0, memMB=240 * GIB),
    "gpu1": specs.Resource(cpu=12, gpu=1, memMB=100 * GIB),
    "gpu8_a100": specs.Resource(cpu=96, gpu=8, memMB=1000 * GIB),
    "gpu8_h100": specs.Resource(cpu=192, gpu=8, memMB=1900 * GIB),
}


class LaunchError(ComponentValidationException, ValueError):
    """A mistake in a component's arguments: a ValueError for Python, and for the torchx command, which catches only its
    own kind, a message and exit status 1 without a traceback."""


def find_resource(name: str) -> specs.Resource:
    """The resource called `name`: `local` (this machine's cores), one of RESOURCES, or one that TorchX knows.

    Raises:
        LaunchError: nobody knows that name.
    """
    if name == "local":
        return this_machine()
    if name in RESOURCES:
        return RESOURCES[name]
    if name in specs.named_resources:
        return specs.named_resources[name]
    known = ", ".join(["local", *RESOURCES])
    raise LaunchError(f"resource: {name!r} is not known; take one of {known}, or a named resource of TorchX")


def this_machine() -> specs.Resource:
    """The cores and the memory of the machine that runs torchx.

    GPUs are left at 0: locally a job uses what torch sees, and TorchX's local scheduler would only warn about them.
    """
    # The affinity, where the system has one, is what a container or a batch slot leaves of the cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return specs.Resource(cpu=cores, gpu=0, memMB=memory_bytes // 2**20)
