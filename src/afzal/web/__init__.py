"""The annotation page: people vote by keyboard in a browser, and every vote is on the disk before the next question.

:mod:`afzal.web.queue` decides who is asked what, :mod:`afzal.web.desk` what is said, :mod:`afzal.web.app` speaks HTTP.
"""
