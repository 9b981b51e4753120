"""The model, written for one device; sharding comes from outside (`mtlrec.distributed`)."""
