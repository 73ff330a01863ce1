"""Runtimes besides ONNX Runtime: how a network is written for each, and run in it.

Nothing of a runtime is imported before it is asked for: each is an extra.
"""
