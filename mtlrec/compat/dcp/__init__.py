"""torch.distributed.checkpoint (DCP) and the ShardedTensors that it keeps."""
