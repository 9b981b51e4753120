"""Workarounds for torch, TorchRec and FBGEMM, and every private name that is imported from them.

One file for each. Its docstring says what upstream does, in which versions it was seen, the upstream issue where there
is one, and when to delete the file. A test with the file's name in tests/unit/compat/ fails once upstream no longer
needs it. tests/unit/test_private_names.py holds that no other file of mtlrec uses a private name of these libraries.

Names that upstream keeps private
    dcp.sharded_tensor        ShardedTensor and its parts
    optimizer_in_backward     the tables' optimizer inside backward
    aot_inductor              compiling and loading an AOTInductor package
    fbgemm.fused_lookups      FBGEMM's lookups in a sharded collection, and their counts of iterations
    dcp.metadata              the classes in a checkpoint's metadata, and an unpickler that builds nothing else

Texts and names that are no API
    dcp.errors                what went wrong in a checkpoint
    memory_errors           an allocation that did not fit
    gloo_errors               a rank that did not come, a rank that has ended
    profiler_events           the stage of a step that an event of a profile belongs to
    quiet                     warnings that a user can do nothing about

What upstream lacks, or does slowly or differently
    allocator                 freed memory that is kept, on CPU
    attempt_store             a part of torchrun's store for each attempt
    fbgemm.cpu_kernels        what FBGEMM cannot train on CPU
    fbgemm.exportable_lookup  a lookup that torch.export and AOTInductor take
    fbgemm.halved_lookup      row-wise Adagrad on CPU
    fbgemm.optimizer_states   names and shapes of states that do not depend on the plan
    dcp.pieces                shards that are saved piece by piece
    planner_choice            what the planner estimated
    sharding_types            row-wise sharding on CPU
    dcp.staging               a copy of ShardedTensors in buffers that are kept

Workarounds for TorchX 0.7 are in launch/components.py, which imports neither torch nor mtlrec: limits of the shutdown
and of restarts go to torchrun by PET_ variables, an `Optional[int]` may arrive as text, annotations keep to `typing`'s
spelling.
"""
