"""How a job reaches a machine: TorchX components and the resources they ask for. Imports neither torch nor mtlrec."""
