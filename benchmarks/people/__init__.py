"""From votes to a better model: the full loop on real stories with simulated people (`make people`)."""
