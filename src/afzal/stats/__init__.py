"""Statistics of small samples: intervals, paired differences, win rates, calibration. One implementation of each.

Votes and rows that share a prompt are not independent, so every interval of the product is over prompts. Import the
file that is needed: ``intervals`` loads neither numpy nor scipy, so that the page and the audit start at once.
"""
