"""The annotation page: people vote by keyboard in a browser, and every vote is on disk before the next question.

:mod:`afzal.web.queue` decides who is asked what, :mod:`afzal.web.annotation` builds replies, and
:mod:`afzal.web.app` is HTTP.
"""
