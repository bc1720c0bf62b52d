"""The controlled-sentiment experiment of the DPO paper in small: reward against KL of several methods."""
