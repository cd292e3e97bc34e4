"""Jobs over shards, and what is done of them: on this machine's cores or on a cluster.

parquet     rows on the disk, the same bytes for the same rows
ledger      which shards are done, safe against a kill at any moment
worker      one shard in one process
cluster     shards on Ray
engine      all shards of a job, on whichever of these
progress    one screen of how far it is
"""
