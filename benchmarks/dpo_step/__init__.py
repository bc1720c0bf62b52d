"""Time of one DPO update by Afzal and by its peers: ``python -m benchmarks.dpo_step --help``."""
