"""From votes to a better model: the whole loop on real stories with simulated people (`make people`)."""
