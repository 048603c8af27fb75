"""Makes packed rows into the tensors of one micro-batch, and cuts slices of them for sequence parallelism."""
