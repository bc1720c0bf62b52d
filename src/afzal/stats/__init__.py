"""Statistics of small samples: intervals, paired differences, win rates, calibration. One implementation of each.

Votes and rows that share a prompt are not independent, so every interval is over prompts. Import only the module that
is needed: ``intervals`` loads neither numpy nor scipy, so that the page and the audit start without delay.
"""
