"""Weights on disk: recognised by content, checked, streamed into modules; converted, downloaded, adapted.

Nothing in here runs code that comes with a checkpoint.
"""
