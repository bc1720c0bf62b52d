"""How long one DPO update takes, by Afzal and by its peers: ``python -m benchmarks.dpo_step --help``."""
